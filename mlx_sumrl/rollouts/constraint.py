"""What may come next in a completion. Never imports mlx.

A `Constraint` is what completions are held to; a `Matcher` follows one of them. Which tokens may come next is one bit
a token: token t is bit t % 32 of word t // 32, as llguidance and xgrammar have it.

Invariant: a completion that ended with a stop token meets its constraint, whatever the model and the sampling.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.rollouts.json_values import JsonScanner

Words = NDArray[np.int32]
"""Bits of tokens [W], W = ceil(V / 32)."""


class Matcher(Protocol):
    """One completion as it grows."""

    def fill(self, words: Words) -> None:
        """Leave set the bits of tokens that may come next; all are set before.

        A completion that has to end may only go on with a stop token.

        Raises:
            UserError: no token may come next.
        """
        ...

    def accept(self, token: int) -> None:
        """This token, no stop token, has come."""
        ...


class Constraint(Protocol):
    """What each completion is held to."""

    def start(self) -> Matcher:
        """A matcher for a new completion."""
        ...


class TokenBytes(Protocol):
    """What each token adds to a text."""

    def __call__(self, token: int) -> bytes: ...


class EndOfJson:
    """A completion ends when its first JSON object or list is complete; nothing else is asked of it.

    It ends with the token that holds the closing bracket, whatever else that token holds, and a stop token.
    """

    def __init__(self, token_bytes: TokenBytes, stop_ids: frozenset[int], opening: bytes = b"{[") -> None:
        """`opening`: the brackets that the value may begin with."""
        self.token_bytes = token_bytes
        self.stop_ids = sorted(stop_ids)
        self.opening = opening

    def start(self) -> EndOfJsonMatcher:
        """A matcher for a new completion."""
        return EndOfJsonMatcher(self)


class EndOfJsonMatcher:
    """See `EndOfJson`."""

    def __init__(self, constraint: EndOfJson) -> None:
        self._constraint = constraint
        self._scanner = JsonScanner(constraint.opening)

    def fill(self, words: Words) -> None:
        """Everything, until the value is complete; then stop tokens."""
        if self._scanner.complete:
            words[:] = 0
            bits = words.view(np.uint32)
            for token in self._constraint.stop_ids:
                bits[token // 32] |= np.uint32(1 << token % 32)

    def accept(self, token: int) -> None:
        """This token has come."""
        self._scanner.feed(self._constraint.token_bytes(token))

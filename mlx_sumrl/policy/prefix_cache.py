"""Caches that keep a prompt's keys, values and states in the graph, for completions computed together with it.

They answer to what mlx-lm's blocks ask of a cache (``offset``, ``update_and_fetch``; for convolutions ``[0]``,
``lengths``, ``advance``), but hold plain arrays: gradients flow through them.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx


class PrefixCache:
    """Keys and values of one attention layer: those that rows begin behind, and the rows' own."""

    def __init__(self, before: Sequence[mx.array], rows: int) -> None:
        self.before = (before[0], before[1]) if before else None
        """Keys and values [1, H, L, E] of all that the rows follow; attention reads them where they are."""
        self.offset = before[0].shape[2] if before else 0
        self.own: tuple[mx.array, mx.array] | None = None
        """The rows' own keys and values [B, H, T, E]."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The keys and values themselves."""
        self.own = keys, values
        return keys, values

    def left(self) -> list[mx.array]:
        """Keys and values [1, H, L + T, E] of a single row and all that it follows."""
        own = self.own or ()
        if self.before is None:
            return list(own)
        return [mx.concatenate(list(pair), axis=2) for pair in zip(self.before, own, strict=True)]


class PrefixState:
    """The same for a convolution layer: the last inputs of the prompt are what completions begin with."""

    lengths = None

    def __init__(self, before: Sequence[mx.array], rows: int) -> None:
        self.state = mx.broadcast_to(before[0], (rows, *before[0].shape[1:])) if before else None
        """[B, K - 1, D]"""

    def __getitem__(self, index: int) -> mx.array | None:
        return self.state

    def __setitem__(self, index: int, value: mx.array) -> None:
        self.state = value

    def advance(self, n: int) -> None:
        """Nothing to count: the state has no positions."""

    def left(self) -> list[mx.array]:
        """The state after the rows."""
        return [] if self.state is None else [self.state]

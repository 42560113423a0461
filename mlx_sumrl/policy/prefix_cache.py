"""Caches that keep a prompt's keys, values and states in the graph, for completions computed together with it.

They answer to what mlx-lm's blocks ask of a cache (``offset``, ``update_and_fetch``; for convolutions ``[0]``,
``lengths``, ``advance``), but hold plain arrays: gradients flow through them.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx


class PrefixCache:
    """Keys and values of one attention layer: those of a prompt, behind which rows begin, and the rows' own."""

    def __init__(self, before: Sequence[mx.array], rows: int) -> None:
        self.before = (before[0], before[1]) if before else None
        """Keys and values [1, H, L, E] of the prompt; attention reads them where they are."""
        self.offset = before[0].shape[2] if before else 0
        self.recorded: list[mx.array] = []
        """The rows' own keys and values [B, H, T, E]."""

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """The keys and values themselves."""
        self.recorded = [keys, values]
        return keys, values


class PrefixState:
    """The same for a convolution layer: the last inputs of the prompt are what completions begin with."""

    lengths = None

    def __init__(self, before: Sequence[mx.array], rows: int) -> None:
        self.recorded: list[mx.array] = []
        """The state [B, K - 1, D] after the rows."""
        if before:
            self.recorded = [mx.broadcast_to(before[0], (rows, *before[0].shape[1:]))]

    def __getitem__(self, index: int) -> mx.array | None:
        return self.recorded[0] if self.recorded else None

    def __setitem__(self, index: int, value: mx.array) -> None:
        self.recorded = [value]

    def advance(self, n: int) -> None:
        """Nothing to count: the state has no positions."""

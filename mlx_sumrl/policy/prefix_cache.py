"""Caches that keep a prompt's keys, values and states in the graph, for completions computed together with it.

They answer to what mlx-lm's blocks ask of a cache (``offset``, ``update_and_fetch``; for convolutions ``[0]``,
``lengths``, ``advance``), but hold plain arrays: gradients flow through them.
"""

from __future__ import annotations

import mlx.core as mx


class PrefixCache:
    """Keys and values of a prompt that completions attend to, as plain arrays in one graph with both.

    With no prefix it records: the prompt runs through first, and `keys` and `values` are then its own.
    """

    def __init__(self, prefix: PrefixCache | None = None, rows: int = 1) -> None:
        self.prefix, self.rows = prefix, rows
        self.offset = 0 if prefix is None else prefix.keys.shape[2]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Keys and values [B, H, L, D] with those of the prefix before them."""
        if self.prefix is None:
            self.keys, self.values = keys, values
            return keys, values
        spread = (self.rows, *self.prefix.keys.shape[1:])
        spread_values = (self.rows, *self.prefix.values.shape[1:])
        return (
            mx.concatenate([mx.broadcast_to(self.prefix.keys, spread), keys], axis=2),
            mx.concatenate([mx.broadcast_to(self.prefix.values, spread_values), values], axis=2),
        )


class PrefixState:
    """The same for a convolution layer: the last inputs of the prompt are what completions begin with."""

    lengths = None

    def __init__(self, prefix: PrefixState | None = None, rows: int = 1) -> None:
        self.state: mx.array | None = None
        if prefix is not None and prefix.state is not None:
            self.state = mx.broadcast_to(prefix.state, (rows, *prefix.state.shape[1:]))

    def __getitem__(self, index: int) -> mx.array | None:
        return self.state

    def __setitem__(self, index: int, value: mx.array) -> None:
        self.state = value

    def advance(self, n: int) -> None:
        """Nothing to count: the state has no positions."""

"""Caches of a batch of completions that is being sampled, one token at a time.

They answer to what mlx-lm's blocks ask of a cache (``offset``, ``update_and_fetch``, ``make_mask``; for
convolutions ``[0]``, ``lengths``, ``advance``). Each begins with the filled caches of the prompts, which
`mlx_internals.prompt_cache` makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx


class BatchCache:
    """Keys and values of one attention layer for a batch of completions whose prompts differ in length.

    Prompts are padded on the left to the longest, so that every row's next token goes to the same column; a row's
    own position counts from its own first token. Room for the whole completion is taken at once.
    """

    def __init__(self, prompts: Sequence[Any], repeats: Sequence[int], room: int) -> None:
        lengths = [cache.offset for cache in prompts]
        longest = max(lengths)

        def lay_out(which: str) -> mx.array:
            rows = []
            for cache, length, count in zip(prompts, lengths, repeats, strict=True):
                array = getattr(cache, which)[..., :length, :]
                padded = mx.pad(array, [(0, 0), (0, 0), (longest - length, room), (0, 0)])
                rows.append(mx.broadcast_to(padded, (count, *padded.shape[1:])))
            return mx.concatenate(rows, axis=0)

        self.keys, self.values = lay_out("keys"), lay_out("values")
        self.filled: int = longest
        padding = [longest - n for n, count in zip(lengths, repeats, strict=True) for _ in range(count)]
        self.padding_B = mx.array(padding) if any(padding) else None

    @property
    def offset(self) -> mx.array | int:
        """Position of the next token in each row."""
        if self.padding_B is None:
            return self.filled
        return mx.subtract(self.filled, self.padding_B)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append keys and values [B, H, 1, D]; all of them so far, padding included."""
        end = self.filled + keys.shape[2]
        self.keys[..., self.filled : end, :] = keys
        self.values[..., self.filled : end, :] = values
        self.filled = end
        return self.keys[..., :end, :], self.values[..., :end, :]

    def make_mask(
        self, n: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | None:
        """Which columns a row may see: all but its own padding."""
        if window_size is not None or n != 1:
            raise NotImplementedError("sampling goes one token at a time and without a sliding window")
        if self.padding_B is None:
            return None
        return mx.arange(self.filled + n)[None, None, None, :] >= self.padding_B[:, None, None, None]

    def keep(self, rows: mx.array) -> None:
        """Go on with these rows only."""
        self.keys, self.values = self.keys[rows], self.values[rows]
        if self.padding_B is not None:
            self.padding_B = self.padding_B[rows]

    @property
    def arrays(self) -> list[mx.array]:
        """What has to be evaluated with each step."""
        return [self.keys, self.values]


class BatchState:
    """State of one convolution layer for a batch of completions; a row's state does not depend on padding."""

    lengths = None

    def __init__(self, prompts: Sequence[Any], repeats: Sequence[int]) -> None:
        self.state = [
            mx.concatenate(
                [mx.repeat(cache[i], count, axis=0) for cache, count in zip(prompts, repeats, strict=True)],
                axis=0,
            )
            for i in range(len(prompts[0].cache))
        ]

    def __getitem__(self, index: int) -> mx.array:
        return self.state[index]

    def __setitem__(self, index: int, value: mx.array) -> None:
        self.state[index] = value

    def advance(self, n: int) -> None:
        """Nothing to count: the state has no positions."""

    def make_mask(self, n: int) -> None:
        """No row has padding."""

    def keep(self, rows: mx.array) -> None:
        """Go on with these rows only."""
        self.state = [array[rows] for array in self.state]

    @property
    def arrays(self) -> list[mx.array]:
        """What has to be evaluated with each step."""
        return self.state


def spread(
    prompts: Sequence[Sequence[Any]], repeats: Sequence[int], room: int
) -> list[BatchCache | BatchState]:
    """Caches of P prompts, each filled once, as caches of ``repeats[p]`` rows each with ``room`` more tokens."""
    spread_caches: list[BatchCache | BatchState] = []
    for layer in zip(*prompts, strict=True):
        if hasattr(layer[0], "update_and_fetch"):
            spread_caches.append(BatchCache(layer, repeats, room))
        else:
            spread_caches.append(BatchState(layer, repeats))
    return spread_caches

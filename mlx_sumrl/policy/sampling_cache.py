"""Caches of a batch of completions that is being sampled, one token at a time.

They answer to what mlx-lm's blocks ask of a cache (``offset``, ``update_and_fetch``, ``make_mask``; for
convolutions ``[0]``, ``lengths``, ``advance``). Each begins with the filled caches of the prompts, which
`mlx_internals.prompt_cache` makes.

Left as it is: with fewer heads for keys than for queries, MLX's CPU attention makes a small product for each row
and head (64 rows, 232 keys: 2.9 ms a layer, 1.8 with a group's heads as rows of one product). A cache never
sees the queries, so nothing here can group them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from mlx_sumrl.errors import UserError

Parts = tuple[mx.array, ...]
"""What keys or values are kept as: one array, or quantised codes, scales and biases."""
GROUP_SIZES = (64, 32)
"""Values that share a scale and a bias, the larger the better; MLX has kernels for these."""


class BatchCache:
    """Keys and values of one attention layer for a batch of completions whose prompts differ in length.

    Prompts are padded on the left to the longest, so that every row's next token goes to the same column; a row's
    own position counts from its own first token. Room for the whole completion is taken at once.
    """

    def __init__(self, prompts: Sequence[Any], repeats: Sequence[int], room: int) -> None:
        lengths = [cache.offset for cache in prompts]
        longest = max(lengths)

        def lay_out(arrays: Sequence[mx.array]) -> Parts:
            rows = []
            for array, length, count in zip(arrays, lengths, repeats, strict=True):
                widths = [(0, 0), (0, 0), (longest - length, room), (0, 0)]
                padded = [mx.pad(part, widths) for part in self._stored(array[..., :length, :])]
                rows.append([mx.broadcast_to(part, (count, *part.shape[1:])) for part in padded])
            return tuple(mx.concatenate(list(parts)) for parts in zip(*rows, strict=True))

        self.keys = lay_out([cache.keys for cache in prompts])
        self.values = lay_out([cache.values for cache in prompts])
        self.filled: int = longest
        padding = [longest - n for n, count in zip(lengths, repeats, strict=True) for _ in range(count)]
        self.padding_B = mx.array(padding) if any(padding) else None

    def _stored(self, array: mx.array) -> Parts:
        """Keys or values [B, H, L, D] as they are kept."""
        return (array,)

    @property
    def offset(self) -> mx.array | int:
        """Position of the next token in each row."""
        if self.padding_B is None:
            return self.filled
        return mx.subtract(self.filled, self.padding_B)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Append keys and values [B, H, 1, D]; all of them so far, padding included."""
        end = self.filled + keys.shape[2]
        for kept, new in ((self.keys, keys), (self.values, values)):
            for part, new_part in zip(kept, self._stored(new), strict=True):
                part[..., self.filled : end, :] = new_part
        self.filled = end
        return self._fetched(self.keys), self._fetched(self.values)

    def _fetched(self, kept: Parts) -> Any:
        """As mlx-lm's attention takes them from a cache of this kind."""
        return kept[0][..., : self.filled, :]

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
        self.keys = tuple(part[rows] for part in self.keys)
        self.values = tuple(part[rows] for part in self.values)
        if self.padding_B is not None:
            self.padding_B = self.padding_B[rows]

    @property
    def arrays(self) -> list[mx.array]:
        """What has to be evaluated with each step."""
        return [*self.keys, *self.values]


class QuantizedBatchCache(BatchCache):
    """The same with keys and values kept in few bits; mlx-lm's attention multiplies with them as they are.

    It takes that way for a cache that has `bits` and `group_size`.
    """

    def __init__(self, prompts: Sequence[Any], repeats: Sequence[int], room: int, bits: int) -> None:
        self.bits = bits
        self.group_size = group_size(prompts[0].keys.shape[-1], bits)
        super().__init__(prompts, repeats, room)

    def _stored(self, array: mx.array) -> Parts:
        codes, scales, *biases = mx.quantize(array, group_size=self.group_size, bits=self.bits)
        return (codes, scales, *biases)

    def _fetched(self, kept: Parts) -> Any:
        return tuple(part[..., : self.filled, :] for part in kept)


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


def group_size(head_dim: int, bits: int) -> int:
    """How many of a head's values share a scale. Raises `UserError` for a head that is no multiple of any."""
    for size in GROUP_SIZES:
        if head_dim % size == 0:
            return size
    raise UserError(
        f"sampling.cache_bits {bits}: this model's attention heads have {head_dim} values, and a quantised cache "
        f"needs a multiple of {GROUP_SIZES[-1]}; leave sampling.cache_bits out"
    )


def spread(
    prompts: Sequence[Sequence[Any]], repeats: Sequence[int], room: int, bits: int | None = None
) -> list[BatchCache | BatchState]:
    """Caches of P prompts, each filled once, as caches of ``repeats[p]`` rows each with ``room`` more tokens.

    With ``bits``, keys and values are quantised; states of convolutions never are.
    """
    spread_caches: list[BatchCache | BatchState] = []
    for layer in zip(*prompts, strict=True):
        if not hasattr(layer[0], "update_and_fetch"):
            spread_caches.append(BatchState(layer, repeats))
        elif bits is None:
            spread_caches.append(BatchCache(layer, repeats, room))
        else:
            spread_caches.append(QuantizedBatchCache(layer, repeats, room, bits))
    return spread_caches

"""One moment of every weight, in float32, in bfloat16 or in 8 bits; read and written slice by slice.

A moment lives in the optimiser's state under ``NAME_OF_MOMENT.name.of.weight``, flat, so that it is saved as
it is. bfloat16 is written stochastically: to the nearest, 0.999 of a number is that number, and a second moment
never decays.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

import mlx.core as mx

from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.policy import Weights
from mlx_sumrl.training.blocks8 import BLOCK, block_count, decode, encode
from mlx_sumrl.training.rounding import rounded

SLICE = 1 << 18
"""Elements of a weight updated at once; a slice needs about a dozen float32 copies of itself."""

WAY_OUT = "go on with the optimizer.kind and optimizer.moments that it was made with, or begin a new run"
"""For a state that other options left."""


@dataclass(frozen=True)
class Part:
    """A slice of a weight, and where the optimiser is."""

    name: str
    """The weight's."""
    shape: tuple[int, ...]
    """The whole weight's."""
    flat: slice
    """Elements of the flattened weight."""
    index: int
    """The slices before it."""
    count: int
    """Steps of the optimiser, this one counted."""
    rate: float

    @property
    def size(self) -> int:
        """Elements of the whole weight."""
        return prod(self.shape)


def flat_slices(size: int) -> list[slice]:
    """Ranges of a flattened weight with about `SLICE` elements each, whole blocks but for the last."""
    step = max(BLOCK, SLICE // BLOCK * BLOCK)
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def kept_array(state: Weights, word: str, part: Part, size: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    """``WORD.name.of.weight`` of the state; zeros at the first step. Raises `UserError` when it is missing later."""
    name = f"{word}.{part.name}"
    if name not in state:
        if part.count > 1:
            raise UserError(f"the optimiser's saved state has no {name}; {WAY_OUT}")
        state[name] = mx.zeros((size,), dtype=dtype)
    return state[name]


def put(array: mx.array, flat: slice, values: mx.array) -> None:
    """``array[flat] = values`` without a copy of the array.

    Values that are still to be computed from a slice of the array would hold its buffer and have it copied, so
    they are computed now.
    """
    if values.size < array.size:
        mx.eval(values)
    array[flat] = values


class Moment:
    """A moment called ``name``; ``signed`` where it may be negative."""

    def __init__(
        self, name: str, storage: Literal["float32", "bfloat16", "blocks8"], *, signed: bool
    ) -> None:
        self.name, self.storage, self.signed = name, storage, signed
        self.layout: dict[str, mx.Dtype]
        """First words of its names in the state, and what is found there."""
        if storage == "blocks8":
            self.layout = {f"{name}_codes": mx.uint8, f"{name}_scales": mx.float32}
        else:
            self.layout = {name: mx.bfloat16 if storage == "bfloat16" else mx.float32}

    def read(self, state: Weights, part: Part) -> mx.array:
        """The part's moment, flat, float32; zeros before the first step."""
        if self.storage == "blocks8":
            codes, scales = self._arrays(state, part)
            return decode(codes[part.flat], scales[_blocks(part.flat)], self.signed)
        (values,) = self._arrays(state, part)
        return values[part.flat].astype(mx.float32)

    def write(self, state: Weights, part: Part, values: mx.array, key: mx.array) -> None:
        """Keep the part's moment, rounded with ``key``."""
        if self.storage == "blocks8":
            codes, scales = self._arrays(state, part)
            new_codes, new_scales = encode(values, self.signed, key)
            put(codes, part.flat, new_codes)
            put(scales, _blocks(part.flat), new_scales)
            return
        (array,) = self._arrays(state, part)
        put(array, part.flat, rounded(values, array.dtype, "stochastic", key))

    def _arrays(self, state: Weights, part: Part) -> list[mx.array]:
        sizes = {f"{self.name}_scales": block_count(part.size)}
        return [
            kept_array(state, name, part, sizes.get(name, part.size), dtype)
            for name, dtype in self.layout.items()
        ]


def _blocks(flat: slice) -> slice:
    return slice(flat.start // BLOCK, block_count(flat.stop))

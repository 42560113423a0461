"""How an update is written into bfloat16 weights, and how much of it arrives.

A step of 1e-6 on a weight of 0.02 is a hundredth of the gap between two bfloat16 numbers: rounded to nearest it is
lost. Stochastic rounding moves the weight by a whole gap now and then, so that the mean is exact. Compensation
(Kahan 1965) keeps what a weight could not take in a second bfloat16 array and adds it to the next update.
"""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx


class Written(NamedTuple):
    """A weight after an update."""

    weight: mx.array
    compensation: mx.array | None
    """What the weight could not take; None without compensation."""
    change: mx.array
    """float32: how far the weight, together with its compensation, moved."""


def written(
    weight: mx.array, compensation: mx.array | None, wanted: mx.array, rounding: str, key: mx.array
) -> Written:
    """Add a float32 change to a weight of any type.

    With a compensation the weight is the bfloat16 number nearest to the sum, and the rest goes into the
    compensation stochastically: the rest has 8 significant bits too, and an update of a few of its gaps would be
    biased if it were rounded to nearest.
    """
    old = weight.astype(mx.float32)
    if compensation is None:
        new = rounded(old + wanted, weight.dtype, rounding, key)
        return Written(new, None, new.astype(mx.float32) - old)
    held = compensation.astype(mx.float32)
    due = held + wanted
    new = (old + due).astype(weight.dtype)
    step = new.astype(mx.float32) - old
    rest = rounded(due - step, compensation.dtype, "stochastic", key)
    return Written(new, rest, step + (rest.astype(mx.float32) - held))


def rounded(values: mx.array, dtype: mx.Dtype, rounding: str, key: mx.array) -> mx.array:
    """float32 values in ``dtype``; into bfloat16 stochastically with ``key``, else to the nearest.

    Stochastic: up or down with the probability that makes the mean exact, by adding 16 random bits below the
    ones that bfloat16 keeps.
    """
    if dtype != mx.bfloat16 or rounding == "nearest":
        return values.astype(dtype)
    bits = values.view(mx.uint32)
    noise = mx.random.randint(0, 1 << 16, shape=values.shape, dtype=mx.uint32, key=key)
    cut = (bits + noise) & mx.array(0xFFFF0000, dtype=mx.uint32)
    return mx.where(mx.isfinite(values), cut.view(mx.float32), values).astype(dtype)

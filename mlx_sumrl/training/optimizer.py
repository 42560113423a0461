"""AdamW that really trains bfloat16 weights.

mlx.optimizers.Adam keeps its state in the type of the weights: in bfloat16 0.999 rounds to 1.0 and the second
moment never decays. And a step of 1e-6 on a weight of 0.02 is a sixtieth of the gap between two bfloat16 numbers:
rounded to nearest, it is lost. Here the moments are float32, the bias is corrected, the update is computed in
float32, and it is written into bfloat16 weights by stochastic rounding, whose mean is exact. How much of the
update arrives is measured at each step (`UpdateReport.kept_fraction`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx

from mlx_sumrl.config import OptimizerConfig
from mlx_sumrl.policy.policy import Weights


@dataclass(frozen=True)
class UpdateReport:
    """What one step did."""

    kept_fraction: float
    """Projection of the change that was written on the change that was wanted, over its squared length: 1 when
    nothing is lost to rounding, 0 when all is."""


class _Moved(NamedTuple):
    """A slice after a step, and what it adds to the report."""

    first: mx.array
    second: mx.array
    weight: mx.array
    kept: mx.array
    wanted_squared: mx.array


SLICE = 1 << 20
"""Elements of a weight updated at once; a slice needs about a dozen float32 copies of itself."""


def _slices(weight: mx.array) -> list[slice]:
    """Ranges of the first axis with about `SLICE` elements each."""
    rows = weight.shape[0]
    step = max(1, SLICE * rows // max(weight.size, 1))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


class AdamW:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2), with bias correction; weight decay on matrices only.

    State: the step count and, for each weight, two float32 moments. The randomness of stochastic rounding is a
    function of (seed, step count, weight), so the state is all that a resumed run needs.
    """

    def __init__(self, options: OptimizerConfig, seed: int) -> None:
        self.options = options
        self.seed = seed
        self.count = 0
        self.first: Weights = {}
        self.second: Weights = {}

    def step(self, weights: Weights, gradients: Weights, rate: float) -> tuple[Weights, UpdateReport]:
        """New weights from weights and gradients of the same names and shapes; moves the state on.

        Weights are finished one by one and in slices, so that neither a second copy of the model nor float32
        temporaries as large as an embedding ever live.
        """
        self.count += 1
        keys = mx.random.split(mx.random.key(self.seed * 1_000_003 + self.count), len(weights))
        updated: Weights = {}
        wanted_squared, kept = mx.array(0.0), mx.array(0.0)
        for key, (name, weight) in zip(keys, weights.items(), strict=True):
            if name not in self.first:
                self.first[name] = mx.zeros(weight.shape, dtype=mx.float32)
                self.second[name] = mx.zeros(weight.shape, dtype=mx.float32)
            first, second, gradient = self.first[name], self.second[name], gradients[name]
            new = mx.array(weight)
            parts = _slices(weight)
            for part, part_key in zip(parts, mx.random.split(key, len(parts)), strict=True):
                moved = self._moved(weight[part], gradient[part], first[part], second[part], rate, part_key)
                first[part], second[part], new[part] = moved.first, moved.second, moved.weight
                kept, wanted_squared = kept + moved.kept, wanted_squared + moved.wanted_squared
                mx.eval(first, second, new, kept, wanted_squared)
            updated[name] = new
        total = float(wanted_squared.item())  # type: ignore[arg-type]
        return updated, UpdateReport(kept_fraction=float(kept.item()) / total if total > 0 else 1.0)  # type: ignore[arg-type]

    def _moved(
        self,
        weight: mx.array,
        gradient: mx.array,
        first: mx.array,
        second: mx.array,
        rate: float,
        key: mx.array,
    ) -> _Moved:
        """One slice of a weight, all of its arithmetic in float32."""
        beta1, beta2 = self.options.betas
        gradient = gradient.astype(mx.float32)
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * mx.square(gradient)
        corrected = mx.sqrt(second / (1 - beta2**self.count)) + self.options.eps
        wanted = -rate * (first / (1 - beta1**self.count)) / corrected
        old = weight.astype(mx.float32)
        if self.options.weight_decay and weight.ndim >= 2:
            wanted = wanted - rate * self.options.weight_decay * old
        new = rounded(old + wanted, weight.dtype, self.options.rounding, key)
        change = new.astype(mx.float32) - old
        return _Moved(first, second, new, (change * wanted).sum(), mx.square(wanted).sum())

    def state(self) -> Weights:
        """The moments as flat arrays, ``first.NAME`` and ``second.NAME``; the count is `count`."""
        moments = {f"first.{name}": array for name, array in self.first.items()}
        moments |= {f"second.{name}": array for name, array in self.second.items()}
        return moments

    def restore(self, state: Weights, count: int) -> None:
        """Go on from a saved state."""
        self.count = count
        self.first = {
            name.removeprefix("first."): a for name, a in state.items() if name.startswith("first.")
        }
        self.second = {
            name.removeprefix("second."): a for name, a in state.items() if name.startswith("second.")
        }

    def reset(self) -> None:
        """Empty moments, as at the start."""
        self.count, self.first, self.second = 0, {}, {}


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


def clipped(gradients: Weights, max_norm: float) -> tuple[Weights, float]:
    """Gradients scaled down to a global L2 norm of ``max_norm``, and their norm before, as float32."""
    squares = [mx.square(array.astype(mx.float32)).sum() for array in gradients.values()]
    norm = float(mx.sqrt(mx.stack(squares).sum()).item())  # type: ignore[arg-type]
    if not norm > max_norm:  # nor when it is NaN: the caller skips the update
        return gradients, norm
    scale = max_norm / norm
    return {name: array * scale for name, array in gradients.items()}, norm

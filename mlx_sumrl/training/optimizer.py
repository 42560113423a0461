"""AdamW that really trains bfloat16 weights.

mlx.optimizers.Adam keeps its state in the type of the weights: in bfloat16 0.999 rounds to 1.0 and the second
moment never decays. And a step of 1e-6 on a weight of 0.02 is a sixtieth of the gap between two bfloat16 numbers:
rounded to nearest, it is lost. Here the moments are float32, the bias is corrected, the update is computed in
float32, and it is written into bfloat16 weights by stochastic rounding, whose mean is exact. How much of the
update arrives is measured at each step (`UpdateReport.kept_fraction`).
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from mlx_sumrl.config import OptimizerConfig
from mlx_sumrl.policy.policy import Weights


@dataclass(frozen=True)
class UpdateReport:
    """What one step did."""

    kept_fraction: float
    """Projection of the change that was written on the change that was wanted, over its squared length: 1 when
    nothing is lost to rounding, 0 when all is."""


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

        Weights are finished one by one, so that no second copy of the model ever lives.
        """
        self.count += 1
        beta1, beta2 = self.options.betas
        correction1, correction2 = 1 - beta1**self.count, 1 - beta2**self.count
        keys = mx.random.split(mx.random.key(self.seed * 1_000_003 + self.count), len(weights))
        updated: Weights = {}
        wanted_squared, kept = mx.array(0.0), mx.array(0.0)
        for place, (name, weight) in enumerate(weights.items()):
            gradient = gradients[name].astype(mx.float32)
            if name not in self.first:
                self.first[name] = mx.zeros(weight.shape, dtype=mx.float32)
                self.second[name] = mx.zeros(weight.shape, dtype=mx.float32)
            first = beta1 * self.first[name] + (1 - beta1) * gradient
            second = beta2 * self.second[name] + (1 - beta2) * mx.square(gradient)
            old = weight.astype(mx.float32)
            wanted = -rate * (first / correction1) / (mx.sqrt(second / correction2) + self.options.eps)
            if self.options.weight_decay and weight.ndim >= 2:
                wanted = wanted - rate * self.options.weight_decay * old
            new = rounded(old + wanted, weight.dtype, self.options.rounding, keys[place])
            change = new.astype(mx.float32) - old
            kept = kept + (change * wanted).sum()
            wanted_squared = wanted_squared + mx.square(wanted).sum()
            self.first[name], self.second[name], updated[name] = first, second, new
            mx.eval(first, second, new, kept, wanted_squared)
        total = float(wanted_squared.item())
        return updated, UpdateReport(kept_fraction=float(kept.item()) / total if total > 0 else 1.0)

    def state(self) -> Weights:
        """The moments as flat arrays, ``first.NAME`` and ``second.NAME``; the count is `count`."""
        moments = {f"first.{name}": array for name, array in self.first.items()}
        moments |= {f"second.{name}": array for name, array in self.second.items()}
        return moments

    def restore(self, state: Weights, count: int) -> None:
        """Go on from a saved state."""
        self.count = count
        self.first = {name.removeprefix("first."): a for name, a in state.items() if name.startswith("first.")}
        self.second = {name.removeprefix("second."): a for name, a in state.items() if name.startswith("second.")}

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
    norm = float(mx.sqrt(mx.stack(squares).sum()).item())
    if not norm > max_norm:  # nor when it is NaN: the caller skips the update
        return gradients, norm
    scale = max_norm / norm
    return {name: array * scale for name, array in gradients.items()}, norm

"""Optimisers that really train bfloat16 weights.

mlx.optimizers keep their state in the type of the weights: in bfloat16 0.999 rounds to 1.0 and a second moment
never decays; and they round small updates away. Here an update is computed in float32 by a rule (`rules`,
`matrix_rules`), from moments that decay however they are kept (`moments`), and written so that it arrives
(`rounding`). How much of it did is measured at each step (`UpdateReport.kept_fraction`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from mlx_sumrl.config import OptimizerConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.policy import Weights
from mlx_sumrl.training.matrix_rules import Adafactor, Muon
from mlx_sumrl.training.moments import WAY_OUT, Part, flat_slices, put
from mlx_sumrl.training.rounding import written
from mlx_sumrl.training.rules import AdamW, Lion, Rule

RULES: dict[str, Callable[[OptimizerConfig], Rule]] = {
    "adamw": AdamW,
    "lion": Lion,
    "adafactor": Adafactor,
    "muon": Muon,
}
COMPENSATION = "compensation"
"""First word of its name in the state."""


@dataclass(frozen=True)
class UpdateReport:
    """What one step did."""

    kept_fraction: float
    """Projection of the change that was written on the change that was wanted, over its squared length: 1 when
    nothing is lost to rounding, 0 when all is. What a compensation holds counts as written."""


class WeightHolder(Protocol):
    """What holds the weights that are moved: a policy."""

    def take_weight(self, name: str) -> mx.array:
        """Hand a weight over; until it is set again the holder is without it."""
        ...

    def set_weight(self, name: str, array: mx.array) -> None:
        """Take a new weight of the same shape."""
        ...


@dataclass(frozen=True)
class HeldWeights:
    """Weights in a dictionary."""

    weights: Weights

    def take_weight(self, name: str) -> mx.array:
        """Another array of the same numbers: whoever else has the weight keeps it as it is."""
        return mx.array(self.weights[name])

    def set_weight(self, name: str, array: mx.array) -> None:
        """Keep it."""
        self.weights[name] = array


class Optimizer:
    """The optimiser that its options describe; weight decay is decoupled and on matrices only.

    State: the step count and flat arrays, the rule's and, with compensated rounding, one for each bfloat16 weight.
    All randomness is a function of (seed, step count, weight, slice), so the state is all that a resumed run
    needs. ``options`` may change between steps, though not to ones that keep another state; `reset` first.
    """

    def __init__(self, options: OptimizerConfig, seed: int) -> None:
        self.options = options
        self.seed = seed
        self.count = 0
        self._state: Weights = {}

    def step(self, weights: Weights, gradients: Weights, rate: float) -> tuple[Weights, UpdateReport]:
        """New weights from weights and gradients of the same names and shapes; moves the state on."""
        held = HeldWeights(dict(weights))
        report = self.move(held, {name: gradients[name] for name in weights}, rate)
        return held.weights, report

    def move(self, holder: WeightHolder, gradients: Weights, rate: float, scale: float = 1.0) -> UpdateReport:
        """The same in place; ``gradients`` are used up, ``scale`` multiplies them first, for clipping.

        Weights are finished one by one and in slices, so that neither a second copy of the model nor float32
        temporaries as large as an embedding ever live.
        """
        rule = RULES[self.options.kind](self.options)
        self._check_state(rule)
        self.count += 1
        keys = mx.random.split(mx.random.key(self.seed * 1_000_003 + self.count), len(gradients))
        wanted_squared, kept = mx.array(0.0), mx.array(0.0)
        for key, name in zip(keys, list(gradients), strict=True):
            gradient = gradients.pop(name).reshape(-1)
            # Taken, so that nobody else holds it and slices are written where they are.
            new = holder.take_weight(name)
            shape = new.shape
            new = new.reshape(-1)
            try:
                compensation = self._compensation(name, new)
                decay = self.options.weight_decay if len(shape) >= 2 else 0.0
                slices = rule.slices(name, shape)
                for index, (flat, slice_key) in enumerate(
                    zip(slices, mx.random.split(key, len(slices)), strict=True)
                ):
                    rule_key, write_key = mx.random.split(slice_key)
                    part = Part(name, shape, flat, index, self.count, rate)
                    asked = gradient[flat].astype(mx.float32)
                    asked = asked if scale == 1 else asked * scale
                    wanted = rule.wanted(part, asked, self._state, rule_key)
                    if decay:
                        wanted = wanted - rate * decay * new[flat].astype(mx.float32)
                    # No name for these slices: what holds one when the arrays are written to has them copied.
                    done = written(
                        new[flat],
                        None if compensation is None else compensation[flat],
                        wanted,
                        self.options.rounding,
                        write_key,
                    )
                    kept = kept + (done.change * wanted).sum()
                    wanted_squared = wanted_squared + mx.square(wanted).sum()
                    mx.eval(kept, wanted_squared, [array for array in done if array is not None])
                    put(new, flat, done.weight)
                    if compensation is not None and done.compensation is not None:
                        put(compensation, flat, done.compensation)
                moved = [self._state[key] for key in self._names(rule, name) if key in self._state]
                mx.eval(new, kept, wanted_squared, moved)
            finally:
                holder.set_weight(name, new.reshape(shape))
        total = float(wanted_squared.item())  # type: ignore[arg-type]
        return UpdateReport(kept_fraction=float(kept.item()) / total if total > 0 else 1.0)  # type: ignore[arg-type]

    def state(self) -> Weights:
        """Flat arrays, ``first.NAME`` and so on; the count is `count`."""
        return dict(self._state)

    def restore(self, state: Weights, count: int) -> None:
        """Go on from a saved state."""
        self.count = count
        self._state = {name: array.reshape(-1) for name, array in state.items()}

    def reset(self) -> None:
        """Empty state, as at the start; what a compensation held, less than half a gap, is let go."""
        self.count, self._state = 0, {}

    def _compensation(self, name: str, weight: mx.array) -> mx.array | None:
        key = f"{COMPENSATION}.{name}"
        if self.options.rounding != "compensated" or weight.dtype != mx.bfloat16:
            self._state.pop(key, None)
            return None
        if key not in self._state:
            self._state[key] = mx.zeros((weight.size,), dtype=mx.bfloat16)
        return self._state[key]

    def _names(self, rule: Rule, name: str) -> list[str]:
        return [f"{word}.{name}" for word in (*rule.layout, COMPENSATION)]

    def _check_state(self, rule: Rule) -> None:
        """Raises `UserError` for a state that other options left."""
        layout = rule.layout | {COMPENSATION: mx.bfloat16}
        for name, array in self._state.items():
            word = name.partition(".")[0]
            if word not in layout or layout[word] != array.dtype:
                raise UserError(f"the optimiser's saved state has {name} as {array.dtype}; {WAY_OUT}")


def clip_scale(gradients: Weights, max_norm: float) -> tuple[float, float]:
    """What to multiply gradients with for a global L2 norm of at most ``max_norm``, and their norm, in float32."""
    total = mx.array(0.0)
    for array in gradients.values():
        flat = array.reshape(-1)
        for part in flat_slices(flat.size):
            total = total + mx.square(flat[part].astype(mx.float32)).sum()
            mx.eval(total)
    norm = float(mx.sqrt(total).item())  # type: ignore[arg-type]
    # Not where it is NaN: the caller skips the update.
    return (max_norm / norm if norm > max_norm else 1.0), norm

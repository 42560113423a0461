"""A learning rate range test: a few steps at rates that grow by the same factor each, and what their losses say.

Smith 2015 (arXiv:1506.01186) raises the rate from step to step and watches where the loss begins to fall and where
it blows up; exponentially, as is done here, since the right one may be anywhere in six powers of ten.

Invariant: the policy's weights are afterwards bit for bit what they were, whatever happens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_sumrl.config import OptimizerConfig, RateRangeConfig, SupervisedConfig
from mlx_sumrl.data.order import batch_indices
from mlx_sumrl.data.supervised_example import SupervisedExample
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.training.optimizer import Optimizer
from mlx_sumrl.training.seeds import derived_seed
from mlx_sumrl.training.sft import supervised_gradient
from mlx_sumrl.training.update import Guard, apply_update

BLOWN_UP = 1.5
"""The test ends where the losses of `IN_A_ROW` steps are this many times those of the first."""
IN_A_ROW = 3
BELOW_DIVERGENCE = 10.0
"""How far below the rate that diverges the suggestion stays: a run takes many more steps than the test."""
HALF_WIDTH = 0.5
"""Powers of ten to either side over which the fall of the loss is measured."""
LEAST_FALL = 0.005
"""Share of the first loss by which it has to fall somewhere for the test to say anything."""


@dataclass(frozen=True)
class RangeTest:
    """Losses by learning rate, and what follows. [S] each, S the steps that were taken."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """Of each step's batch, before the step at its rate."""
    smoothed: tuple[float, ...]
    """The same, each the mean of its neighbours with weights that fall to both sides."""
    steepest: float | None
    """The rate at which the loss falls fastest with the logarithm of the rate; None where it never falls."""
    diverged: float | None
    """The first rate, past the lowest loss, at which half of the fall is lost again, or, where there was no fall, at
    which the loss has risen; None where it never is."""

    @property
    def suggestion(self) -> float | None:
        """The steepest rate, or a tenth of the one that diverges where that is lower; None where nothing falls."""
        if self.steepest is None:
            return None
        return min(self.steepest, math.inf if self.diverged is None else self.diverged / BELOW_DIVERGENCE)


def rate_range(
    policy: Policy,
    examples: Sequence[SupervisedExample],
    options: RateRangeConfig,
    sft: SupervisedConfig,
    optimizer: OptimizerConfig,
    *,
    seed: int = 0,
    progress: Callable[[int, float, float], None] | None = None,
) -> RangeTest:
    """Take up to ``options.steps`` steps at rising rates and put the policy back.

    Batches, loss and optimiser are those of a run with these options, whose own rate and schedule do not matter.
    ``progress`` is told the number of steps taken, the rate and the loss. It ends early where the loss has blown up
    or is not finite.
    """
    before = policy.snapshot()
    rates = [
        options.lowest * (options.highest / options.lowest) ** (step / (options.steps - 1))
        for step in range(options.steps)
    ]
    losses: list[float] = []
    stepper, guard = Optimizer(optimizer, derived_seed(seed, "rounding")), Guard(options.steps + 1)
    try:
        for step, rate in enumerate(rates):
            mx.random.seed(derived_seed(seed, "dropout", step))
            places = batch_indices(derived_seed(seed, "order range"), len(examples), sft.batch_size, step)
            gradient = supervised_gradient(
                policy, [examples[i] for i in places], sft.micro_batch_tokens, sft.label_smoothing
            )
            losses.append(gradient.loss)
            if progress is not None:
                progress(step + 1, rate, gradient.loss)
            if not math.isfinite(gradient.loss) or blown_up(losses):
                break
            apply_update(policy, stepper, guard, gradient, rate)
    finally:
        policy.set_weights(before)
    return judged(rates[: len(losses)], losses, options.steps)


def blown_up(losses: Sequence[float]) -> bool:
    """Whether the last losses are all far above the first ones."""
    return len(losses) > 2 * IN_A_ROW and min(losses[-IN_A_ROW:]) > BLOWN_UP * float(
        np.mean(losses[:IN_A_ROW])
    )


def judged(rates: Sequence[float], losses: Sequence[float], steps: int) -> RangeTest:
    """What losses [S] at rising rates [S] say, of a test that would have taken ``steps``."""
    finite = np.array([loss for loss in losses if math.isfinite(loss)])
    if len(finite) < 3:
        worst = rates[len(finite)] if len(finite) < len(rates) else None
        return RangeTest(tuple(rates), tuple(losses), tuple(finite.tolist()), None, worst)
    reach = max(steps // 20, 1)
    smoothed = _smoothed(finite, reach)
    first, lowest = float(smoothed[:reach].mean()), int(smoothed.argmin())
    fall, least = first - float(smoothed[lowest]), LEAST_FALL * abs(first)
    fell = lowest > 0 and fall > least
    too_high = first - fall / 2 if fell else first + least
    above = [i for i in range(lowest + 1, len(smoothed)) if smoothed[i] > too_high]
    place = above[0] if above else len(finite) if len(finite) < len(losses) else None
    steepest = None
    if fell:
        steepest = rates[_steepest(np.log10(rates[: len(finite)]), finite, lowest)]
    return RangeTest(
        tuple(rates),
        tuple(losses),
        tuple(smoothed.tolist()),
        steepest,
        None if place is None else rates[place],
    )


def _steepest(log_rates: np.ndarray, losses: np.ndarray, lowest: int) -> int:
    """Where, up to the lowest, a line through all losses within half a power of ten falls fastest.

    Between neighbours it would be wherever one batch happened to be harder than the next. Where it can be, the
    line has its full length to the left: a short one is steep by chance.
    """
    centres = [i for i in range(lowest + 1) if log_rates[i] - log_rates[0] >= HALF_WIDTH - 1e-9]
    slopes = {}
    for i in centres or range(lowest + 1):
        near = np.abs(log_rates - log_rates[i]) <= HALF_WIDTH + 1e-9
        if near.sum() > 2:
            slopes[i] = np.polyfit(log_rates[near], losses[near], 1)[0]
    return min(slopes, key=lambda i: slopes[i]) if slopes else lowest


def _smoothed(values: np.ndarray, reach: int) -> np.ndarray:
    """Each value's mean with ``reach`` neighbours to either side, nearer ones counting more; fewer at the ends.

    Centred: an average over the past would put every fall and every rise at a higher rate than it had.
    """
    weights = np.bartlett(2 * reach + 3)[1:-1]
    total = np.convolve(values, weights, "full")[reach : reach + len(values)]
    counts = np.convolve(np.ones(len(values)), weights, "full")[reach : reach + len(values)]
    return np.asarray(total / counts)

"""One guarded optimiser step: clip, check, move the weights, say what happened."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.training.micro_batch import BatchGradient
from mlx_sumrl.training.optimizer import Optimizer, clip_scale


@dataclass
class Guard:
    """Counts updates skipped for a loss or gradient that is not finite; too many in a row stop the run."""

    limit: int
    in_a_row: int = 0
    total: int = 0

    def skipped(self) -> None:
        """Count one. Raises `UserError` at the limit: the weights are still those of the last good step."""
        self.in_a_row += 1
        self.total += 1
        if self.in_a_row >= self.limit:
            raise UserError(
                f"the loss or its gradient was not finite in {self.in_a_row} steps in a row "
                "(optimizer.max_bad_steps); the last good checkpoint is kept; start a new run with a lower "
                "optimizer.learning_rate, or with policy.dtype float32"
            )


def apply_update(
    policy: Policy, optimizer: Optimizer, guard: Guard, gradient: BatchGradient, rate: float
) -> dict[str, float]:
    """Move the policy one step, or leave it alone when something is not finite. Metrics of the step.

    An empty gradient (no completion taught anything) moves nothing either, and is not counted as bad. The
    gradient is used up.
    """
    metrics = {"loss": gradient.loss, "learning_rate": rate, "updates/skipped": float(guard.total)}
    if not gradient.gradients:
        return metrics | {"grad_norm": 0.0, "update/kept_fraction": 1.0}
    scale, norm = clip_scale(gradient.gradients, optimizer.options.max_grad_norm)
    metrics["grad_norm"] = norm
    if not (math.isfinite(gradient.loss) and math.isfinite(norm)):
        guard.skipped()
        return metrics | {"updates/skipped": float(guard.total)}
    guard.in_a_row = 0
    report = optimizer.move(policy, gradient.gradients, rate, scale)
    return metrics | {"update/kept_fraction": report.kept_fraction}

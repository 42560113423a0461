"""Learning rate by step: a pure function, so that a resumed run needs nothing but its step number."""

from __future__ import annotations

import math

from mlx_sumrl.config import OptimizerConfig


def learning_rate(options: OptimizerConfig, step: int, total: int, peak: float | None = None) -> float:
    """The rate of step ``step`` (0-based) of ``total``; ``peak`` stands in for ``options.learning_rate``.

    It rises in a line over the warm-up, reaching its peak at step ``warmup_steps``, then follows the schedule down
    to ``final_share`` of the peak at the last step.
    """
    peak = options.learning_rate if peak is None else peak
    warmup = min(options.warmup_steps, total)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if options.schedule == "constant":
        return peak
    progress = min((step - warmup) / max(total - 1 - warmup, 1), 1.0)
    shape = 1 - progress if options.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (options.final_share + (1 - options.final_share) * shape)

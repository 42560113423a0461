"""Learning rate by step: a pure function, so that a resumed run needs nothing but its step number."""

from __future__ import annotations

import math

from mlx_sumrl.config import OptimizerConfig


def learning_rate(options: OptimizerConfig, step: int, total: int, peak: float) -> float:
    """The rate of step ``step`` (0-based) of ``total``; ``peak`` is ``options.learning_rate`` or stands in for it.

    It rises in a line over the warm-up, reaching its peak at the step after it, then follows the schedule down to
    ``final_share`` of the peak at the last step. ``inverse_sqrt`` (Vaswani et al. 2017, section 5.3) falls as the
    root of the steps since the warm-up began, for which a run without one counts from its first step, and stays
    above that share; ``stable_decay`` is the warm-up, stable, decay of Hu et al. 2024 (arXiv:2404.06395).
    """
    warmup = min(warmup_steps(options, total), total)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if options.schedule == "constant":
        return peak
    if options.schedule == "inverse_sqrt":
        return peak * max(math.sqrt((warmup + 1) / (step + 1)), options.final_share)
    progress = min((step - warmup) / max(total - 1 - warmup, 1), 1.0)
    if options.schedule == "cosine":
        shape = 0.5 * (1 + math.cos(math.pi * progress))
    elif options.schedule == "linear":
        shape = 1 - progress
    else:
        last = total - 1
        first = max(last - max(round(options.decay_share * total), 1), warmup)  # the last step at the peak
        shape = min(max(last - step, 0) / (last - first), 1.0) if last > first else 1.0
    return peak * (options.final_share + (1 - options.final_share) * shape)


def warmup_steps(options: OptimizerConfig, total: int) -> int:
    """Steps of the warm-up in a run of ``total``; a share of them is rounded up."""
    # 0.1 of 30 steps is 3, though 0.1 * 30 is a little more.
    return math.ceil(options.warmup_ratio * total - 1e-9) if options.warmup_ratio else options.warmup_steps

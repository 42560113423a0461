"""The multiplier of a constraint on a reward's mean: dual ascent on the Lagrangian.

Quality Q is to be maximised while the mean of a reward C is at least c. The policy is trained on Q + m C for the
multiplier m as it is, and m follows the shortfall, m <- clip(m + rate (c - mean C), 0, most): it grows as long as the
constraint is not met, and falls where there is room (Tessler et al. 2018, "Reward constrained policy optimization",
arXiv:1805.11074, equation 6). Never imports mlx.
"""

from __future__ import annotations

import math

from mlx_sumrl.config import ConstraintConfig


def moved_multiplier(multiplier: float, mean: float | None, options: ConstraintConfig) -> float:
    """The multiplier after a step whose completions had this mean of the kept reward; the same where there is none."""
    if mean is None or not math.isfinite(mean):
        return multiplier
    return min(max(multiplier + options.rate * (options.at_least - mean), 0.0), options.most)

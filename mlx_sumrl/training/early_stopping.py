"""When more training no longer helps: a pure function of the losses so far.

Invariant: the verdict depends on the held-out losses and the options alone, so a resumed run that has its losses has
its patience too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mlx_sumrl.config import EarlyStoppingConfig


@dataclass(frozen=True)
class Verdict:
    """What the evaluations so far say."""

    best: int | None
    """Index of the lowest loss, the first of equal ones; None where none is finite."""
    waited: int
    """Evaluations since the last improvement by more than `min_delta`."""
    stop: bool


def verdict(losses: Sequence[float], options: EarlyStoppingConfig) -> Verdict:
    """Of held-out losses in the order in which they were measured. One that is not finite is no improvement."""
    best, waited, to_beat = None, 0, math.inf
    for index, loss in enumerate(losses):
        if math.isfinite(loss) and (best is None or loss < losses[best]):
            best = index
        # A slow fall is measured from the last improvement, so that small steps add up to one.
        improved = math.isfinite(loss) and (to_beat == math.inf or to_beat - loss > options.min_delta)
        waited = 0 if improved else waited + 1
        to_beat = loss if improved else to_beat
    return Verdict(best, waited, options.patience is not None and waited >= options.patience)

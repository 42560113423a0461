"""A reward against text that repeats itself: what a policy does when it is paid for length alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.metrics.repetition import repeated_share
from mlx_sumrl.rewards.reward import score_each
from mlx_sumrl.rollouts.types import Completion, Group


@dataclass(frozen=True, slots=True)
class RepetitionReward:
    """Minus the share of repeated n-grams of model tokens, the stop token left out."""

    name: str
    ngram: int

    def __call__(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        """Shape [P, G], values in (-1, 0]."""
        return score_each(groups, lambda _, completion: 0.0 - repetition(completion, self.ngram))


def repetition(completion: Completion, ngram: int) -> float:
    """`repeated_share` of a completion without its stop token."""
    return repeated_share(completion.content_ids, ngram)

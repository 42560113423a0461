"""A reward against text that repeats itself: what a policy does when it is paid for length alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.rewards.reward import score_each
from mlx_sumrl.rollouts.types import Completion, Group


def repeated_share(token_ids: Sequence[int], ngram: int) -> float:
    """seq-rep-n: the share of n-grams that stood in the text before, 1 - distinct / all, in [0, 1).

    0 for a text with fewer than two n-grams. Welleck et al. 2019, arXiv:1908.04319, section 6.1.
    """
    grams = [tuple(token_ids[start : start + ngram]) for start in range(len(token_ids) - ngram + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


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

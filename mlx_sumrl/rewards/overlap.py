"""Rewards for what a completion shares with its reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer

from mlx_sumrl.metrics.rouge import rouge_scorer
from mlx_sumrl.rewards.reward import score_each
from mlx_sumrl.rollouts.types import Group


@dataclass(frozen=True, slots=True)
class RougeLReward:
    """ROUGE-L F1 of a completion's text against its example's reference; 0 where either has no tokens."""

    name: str
    _scorer: RougeScorer = field(default_factory=lambda: rouge_scorer("rougeL"), repr=False, compare=False)

    def __call__(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        """Shape [P, G], values in [0, 1]."""
        return score_each(
            groups,
            lambda example, completion: float(
                self._scorer.score(example.reference, completion.text)["rougeL"].fmeasure
            ),
        )

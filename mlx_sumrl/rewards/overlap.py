"""Rewards for what a completion shares with its reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer

from mlx_sumrl.errors import UserError
from mlx_sumrl.metrics.meteor import meteor, missing_wordnet
from mlx_sumrl.metrics.rouge import rouge_scorer
from mlx_sumrl.rewards.reward import Place, score_each
from mlx_sumrl.rollouts.types import Group

RougeKind = Literal["rouge1", "rouge2", "rougeL"]


@dataclass(frozen=True, slots=True)
class RougeReward:
    """ROUGE F1 of a completion's text against its example's reference; 0 where either has no tokens."""

    place: ClassVar[Place] = "processes"
    name: str
    kind: RougeKind = "rougeL"

    def __call__(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        """Shape [P, G], values in [0, 1]."""
        scorer = _scorer(self.kind)
        return score_each(
            groups,
            lambda example, completion: float(
                scorer.score(example.reference, completion.text)[self.kind].fmeasure
            ),
        )


@dataclass(frozen=True, slots=True)
class MeteorReward:
    """METEOR of a completion's text against its example's reference; see `mlx_sumrl.metrics.meteor`."""

    place: ClassVar[Place] = "processes"
    takes_time: ClassVar[bool] = True
    name: str

    def __call__(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        """Shape [P, G], values in [0, 1]."""
        return score_each(groups, lambda example, completion: meteor(completion.text, example.reference))

    @staticmethod
    def warm_up() -> None:
        """Load WordNet. Raises `UserError` where it is missing."""
        if missing := missing_wordnet():
            raise UserError(missing)


@cache
def _scorer(kind: RougeKind) -> RougeScorer:
    return rouge_scorer(kind)

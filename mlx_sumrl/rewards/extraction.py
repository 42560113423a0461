"""Rewards for how much of a summary is its document's own words, and how much of what matters it names. Never imports
mlx."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.metrics.entities import entity_coverage
from mlx_sumrl.metrics.extractiveness import coverage, novelty
from mlx_sumrl.rewards.reward import Place, score_each
from mlx_sumrl.rollouts.types import Group


@dataclass(frozen=True, slots=True)
class ExtractivenessReward:
    """`coverage`: the share of a completion's words that lie in fragments copied from its document.

    Give it a weight below 0 against copying. A completion without a word has 0.
    """

    place: ClassVar[Place] = "processes"
    name: str

    def __call__(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        """Shape [P, G], values in [0, 1]."""
        return score_each(
            groups, lambda example, completion: coverage(completion.text, example.document) or 0.0
        )


@dataclass(frozen=True, slots=True)
class NoveltyReward:
    """`novelty`: the share of a completion's n-grams of words that its document does not have.

    Words without sense are new too: a reward among others. A completion of fewer than n words has 0.
    """

    place: ClassVar[Place] = "processes"
    name: str
    ngram: int

    def __call__(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        """Shape [P, G], values in [0, 1]."""
        return score_each(
            groups,
            lambda example, completion: novelty(completion.text, example.document, self.ngram) or 0.0,
        )


@dataclass(frozen=True, slots=True)
class EntityCoverageReward:
    """`entity_coverage`: the share of the names and numbers of the reference, or of the document, that a completion
    mentions. Missing (NaN) where there are none to mention."""

    place: ClassVar[Place] = "processes"
    takes_time: ClassVar[bool] = True
    name: str
    source: Literal["reference", "document"]

    def __call__(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        """Shape [P, G], values in [0, 1] or NaN."""

        def score(completion_text: str, source: str) -> float:
            found = entity_coverage(completion_text, source)
            return np.nan if found is None else found

        return score_each(
            groups, lambda example, completion: score(completion.text, getattr(example, self.source))
        )

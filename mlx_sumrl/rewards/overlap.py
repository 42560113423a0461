"""Rewards for what a completion shares with its reference: ROUGE, METEOR, BLEU, chrF. Never imports mlx."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer

from mlx_sumrl.errors import UserError
from mlx_sumrl.metrics.bleu import bleu
from mlx_sumrl.metrics.chrf import chrf
from mlx_sumrl.metrics.meteor import meteor, wordnet_problem
from mlx_sumrl.metrics.rouge import rouge_scorer
from mlx_sumrl.metrics.sentences import sentences
from mlx_sumrl.rewards.reward import Place, score_each
from mlx_sumrl.rollouts.types import Group

OverlapKind = Literal["rouge1", "rouge2", "rougeL", "rougeLsum", "meteor", "bleu", "chrf"]
_QUICK: frozenset[OverlapKind] = frozenset(("rouge1", "rouge2", "rougeL"))
"""Half a millisecond a completion; the others take one to three."""


@dataclass(frozen=True, slots=True)
class OverlapReward:
    """One metric of a completion's text against its example's reference, as `mlx_sumrl.metrics` has it: ROUGE is F1.

    0 where either text has nothing that the metric counts.
    """

    place: ClassVar[Place] = "processes"
    name: str
    kind: OverlapKind

    @property
    def takes_time(self) -> bool:
        """Whether it is worth a process."""
        return self.kind not in _QUICK

    def warm_up(self) -> None:
        """Load what is read from disk once. Raises `UserError` for METEOR without WordNet."""
        if self.kind == "meteor" and (problem := wordnet_problem()):
            raise UserError(f"reward {self.name!r} is METEOR, and {problem}")

    def __call__(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        """Shape [P, G], values in [0, 1]."""
        score = _metric(self.kind)
        return score_each(groups, lambda example, completion: score(completion.text, example.reference))


def _metric(kind: OverlapKind) -> Callable[[str, str], float]:
    match kind:
        case "meteor":
            return meteor
        case "bleu":
            return bleu
        case "chrf":
            return chrf
        case "rougeLsum":
            return _rouge_lsum
        case _:
            return lambda text, reference: float(_scorer(kind).score(reference, text)[kind].fmeasure)


def _rouge_lsum(text: str, reference: str) -> float:
    # rouge-score takes each line for a sentence.
    lines = ["\n".join(sentences(one)) for one in (reference, text)]
    return float(_scorer("rougeLsum").score(*lines)["rougeLsum"].fmeasure)


@cache
def _scorer(kind: OverlapKind) -> RougeScorer:
    return rouge_scorer(kind)

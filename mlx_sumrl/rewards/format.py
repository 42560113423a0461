"""Rewards for the form of an answer: bullets of a kind, JSON of a schema. Never imports mlx."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.data.answer_schema import AnswerSchema, NotJsonError, read_json
from mlx_sumrl.data.text_length import bullet_texts, words
from mlx_sumrl.rewards.reward import score_each
from mlx_sumrl.rollouts.types import Completion, Group


@dataclass(frozen=True, slots=True)
class BulletsReward:
    """How near a completion comes to so many bullets of at most so many words, and nothing else: `bullets_score`."""

    name: str
    bullets: int
    max_words: int | None

    def __call__(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        """Shape [P, G], values in [0, 1]."""
        return score_each(
            groups, lambda _, completion: bullets_score(completion, self.bullets, self.max_words)
        )


def bullets_score(completion: Completion, bullets: int, max_words: int | None) -> float:
    """The product of three shares, each 1 only where it is met, so that 1 means that all of it is.

    The number of bullets, ``1 - min(|n - bullets| / bullets, 1)``; the share of lines with text that are bullets; and
    the mean over bullets of ``min(max_words / words, 1)``. 0 for a completion that did not come to its end.
    """
    lines = sum(any(map(str.isalnum, line)) for line in completion.text.splitlines())
    found = bullet_texts(completion.text)
    if completion.finish_reason != "stop" or not found:
        return 0.0
    counted = 1 - min(abs(len(found) - bullets) / bullets, 1.0)
    short = 1.0 if max_words is None else fmean(min(max_words / max(words(one), 1), 1.0) for one in found)
    return counted * (len(found) / lines) * short


@dataclass(frozen=True, slots=True)
class JsonSchemaReward:
    """1 where all of a completion's text is JSON that meets the schema, else 0."""

    name: str
    schema: AnswerSchema

    def __call__(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        """Shape [P, G], values 0 and 1."""
        return score_each(groups, lambda _, completion: float(self._is_valid(completion.text)))

    def _is_valid(self, text: str) -> bool:
        try:
            return self.schema.problem(read_json(text)) is None
        except NotJsonError:
            return False

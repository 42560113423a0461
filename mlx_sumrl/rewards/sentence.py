"""Rewards for whole sentences: whoever is paid for a length alone stops in the middle of one.

A row of end marks ends nothing: paid for any, a policy filled the length with ``!!!!!!``, which ROUGE does not see;
and paid where only the last may be no row, with ``#Person1# agrees...... #Person2# agrees.`` Paid for where a text
ends, a policy makes ends: ``We show that our approach. the proposed method. the proposed method.`` So there is a reward
for all of a text's sentences, too, in which such fragments count as none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.metrics.sentences import END_MARKS, ends_sentence, is_whole
from mlx_sumrl.rewards.reward import score_each
from mlx_sumrl.rollouts.types import Group

# Possessive, since a text may be hundreds of marks: giving back what was matched would take cubic time, and never help.
_ROW_AT_END = re.compile(rf"[{END_MARKS}](?:\s*[{END_MARKS}]){{3,}}+\W*+$")
_ROW_BEFORE = re.compile(rf"[{END_MARKS}]\s*[{END_MARKS}](?=\W*+\w)")


@dataclass(frozen=True, slots=True)
class EndsSentenceReward:
    """1 where a completion stopped by itself, at the end of a sentence, with no row of end marks before; else 0."""

    name: str

    def __call__(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        """Shape [P, G], values 0 and 1."""
        return score_each(
            groups,
            lambda _, completion: float(
                completion.finish_reason == "stop"
                and ends_sentence(completion.text)
                and not has_row_of_marks(completion.text)
            ),
        )


@dataclass(frozen=True, slots=True)
class WholeSentencesReward:
    """1 where a completion stopped by itself and is whole sentences (`is_whole`), else 0."""

    name: str
    min_words: int

    def __call__(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        """Shape [P, G], values 0 and 1."""
        return score_each(
            groups,
            lambda _, completion: float(
                completion.finish_reason == "stop" and is_whole(completion.text, self.min_words)
            ),
        )


def has_row_of_marks(text: str) -> bool:
    """Whether ``text`` has more than three end marks (``?!``, ``...``) in a row at its end, or a row before it."""
    return _ROW_AT_END.search(text) is not None or _ROW_BEFORE.search(text) is not None

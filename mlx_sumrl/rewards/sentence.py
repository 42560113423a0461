"""A reward for texts that end where a sentence does: whoever is paid for a length alone stops in the middle of one.

A row of end marks ends nothing: paid for any, a policy filled the length with ``!!!!!!``, which ROUGE does not see;
and paid where only the last may be no row, with ``#Person1# agrees...... #Person2# agrees.``
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.metrics.sentences import END_MARKS, ends_sentence
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
            lambda _, completion: float(completion.finish_reason == "stop" and whole(completion.text)),
        )


def whole(text: str) -> bool:
    """Whether ``text`` ends with an end mark, or three at most (``?!``, ``...``) in a row, and has no row before."""
    return ends_sentence(text) and _ROW_AT_END.search(text) is None and _ROW_BEFORE.search(text) is None

"""A reward for texts that end where a sentence does: whoever is paid for a length alone stops in the middle of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.metrics.sentences import ends_sentence
from mlx_sumrl.rewards.reward import score_each
from mlx_sumrl.rollouts.types import Group


@dataclass(frozen=True, slots=True)
class EndsSentenceReward:
    """1 where a completion stopped by itself, at the end of a sentence; else 0."""

    name: str

    def __call__(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        """Shape [P, G], values 0 and 1."""
        return score_each(
            groups,
            lambda _, completion: float(
                completion.finish_reason == "stop" and ends_sentence(completion.text)
            ),
        )

"""A reward for a summary in the language of its document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.data.languages import keeps_language, language_of
from mlx_sumrl.rewards.reward import Place, score_each
from mlx_sumrl.rollouts.types import Group


@dataclass(frozen=True, slots=True)
class LanguageReward:
    """1 where a completion keeps the language of its example's document (`keeps_language`), else 0.

    A text too short to tell keeps it as long as it is in the document's script; one without a letter never does. By
    itself it teaches nothing to a policy that keeps the language anyway, and text without sense in the right language
    has 1: a gate, or one reward among others.
    """

    place: ClassVar[Place] = "processes"
    name: str

    @staticmethod
    def warm_up() -> None:
        """Load the detector."""
        language_of("words")

    def __call__(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        """Shape [P, G], values 0 and 1."""
        return score_each(
            groups, lambda example, completion: float(keeps_language(completion.text, example.document))
        )

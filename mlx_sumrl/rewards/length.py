"""Rewards for the length that was asked for: in generated tokens without the stop token, or in a unit of the text.

Invariant: a completion that did not stop by itself never scores above one that did. Its length is where it
was cut and not where it chose to end, so hitting the target by being cut there is no merit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.config import DEFAULT_LENGTH_UNIT, LengthConfig, LengthUnit
from mlx_sumrl.data.text_length import text_length
from mlx_sumrl.rewards.reward import score_each
from mlx_sumrl.rollouts.types import Completion, Group

LOWEST = -1.0
"""The bounded length reward of an empty, an unfinished, or a twice too long completion."""


def length_in(completion: Completion, unit: LengthUnit) -> int:
    """Generated tokens without the stop token, or what `text_length` counts in the completion's text."""
    return completion.length if unit == "tokens" else text_length(completion.text, unit)


def length_reward(completion: Completion, target: int, unit: LengthUnit = DEFAULT_LENGTH_UNIT) -> float:
    """``-min(|n - target| / target, 1)`` for a finished completion, -1 for an unfinished one.

    In [-1, 0]. Bounded, so that one endless completion cannot drown its group's advantages, and relative to
    the target, so that the same weight serves any target.
    """
    if completion.finish_reason != "stop":
        return LOWEST
    # Not -min(...), which would be -0.0 on target and read as such in every log.
    return max(LOWEST, 0.0 - abs(length_in(completion, unit) - target) / target)


def is_within(completion: Completion, length: LengthConfig, margin: int = 0) -> bool:
    """It stopped by itself and its length differs from the target by at most the tolerance less ``margin``.

    Of a margin no more than half of the tolerance counts, so that something is left to hit.
    """
    if completion.finish_reason != "stop":
        return False
    return abs(length_in(completion, length.unit) - length.target) <= length.allowed - min(
        margin, length.allowed // 2
    )


@dataclass(frozen=True, slots=True)
class LengthReward:
    """`length_reward` of every completion, for the length that its prompt asks for."""

    name: str
    target: int
    """Of prompts that ask for what all do."""
    unit: LengthUnit = DEFAULT_LENGTH_UNIT

    def __call__(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        """Shape [P, G], values in [-1, 0]."""
        return score_each(
            groups,
            lambda example, completion: length_reward(completion, example.target or self.target, self.unit),
        )


@dataclass(frozen=True, slots=True)
class WithinReward:
    """1 where a completion is within the length asked for (`is_within`), else 0. The usual gate."""

    name: str
    length: LengthConfig
    margin: int = 0
    """How much of the tolerance is kept free at both ends."""

    def __call__(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        """Shape [P, G], values 0 and 1."""
        return score_each(
            groups,
            lambda example, completion: float(
                is_within(completion, self.length.asked(example.target), self.margin)
            ),
        )

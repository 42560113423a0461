"""A reward for meaning in common with the reference, by an encoder in MLX: computed where the training is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.metrics.bertscore import BertScorer
from mlx_sumrl.rewards.reward import group_shape
from mlx_sumrl.rollouts.types import Group


@dataclass(frozen=True, slots=True)
class BertScoreReward:
    """BERTScore F1 of a completion's text against its example's reference; 0 where either is empty.

    An encoder's values lie close together (0.8 to 1 for RoBERTa), so beside other rewards it weighs little unless each
    is normalised by itself (`grpo.normalize_rewards: each`).
    """

    name: str
    scorer: BertScorer = field(repr=False)

    def __call__(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        """Shape [P, G], values at most 1."""
        texts = [completion.text for group in groups for completion in group.completions]
        references = [group.example.reference for group in groups for _ in group.completions]
        return self.scorer.score(texts, references)[:, 2].reshape(group_shape(groups))

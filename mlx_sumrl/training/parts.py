"""Paying each part of a text for what it adds: the reward to go.

A token cannot change what stood before it. With Q the reward of a whole text and Q(k) that of its first k tokens, what
the tokens from k on are answerable for is Q - Q(k) (potential-based shaping, Ng et al. 1999: the gradient's mean stays
what it was, whatever Q(k) is). What the others of the group gained from the same place on is the baseline. So filler at
the end is compared with what others said there, and not praised for a good beginning.

Invariant: at the first token this is the group's usual advantage, and at every place the advantages of the completions
that got there sum to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from mlx_sumrl.config import RunConfig, StageConfig
from mlx_sumrl.rewards.scoring import RewardSet, Scores, build_rewards
from mlx_sumrl.rollouts.types import Completion, Group
from mlx_sumrl.training.advantages import SPREAD_FLOOR, Advantages, FloatArray

Decode = Callable[[tuple[int, ...]], str]


@dataclass(frozen=True)
class PartByPart:
    """The rewards of a stage that pay part by part."""

    rewards: RewardSet
    every: int
    paid: tuple[bool, ...]
    """Which rewards of the stage make the advantage of what is said."""
    scale: bool
    decode: Decode

    @classmethod
    def of(cls, stage: StageConfig, config: RunConfig, decode: Decode) -> Self | None:
        """None where a stage has no such reward."""
        chosen = [reward for reward in stage.rewards if reward.every and reward.weight]
        if not chosen:
            return None
        options = config.grpo
        return cls(
            build_rewards(
                stage.model_copy(update={"rewards": tuple(chosen), "constraint": None}), config.length
            ),
            min(reward.every for reward in chosen),
            tuple(reward.credit != "stop" for reward in stage.rewards),
            options.scale_advantages == "group" and options.loss != "dr_grpo",
            decode,
        )

    def __call__(self, groups: Sequence[Group], scores: Scores, advantages: Advantages) -> Advantages:
        """The same, with an advantage for each token."""
        totals_PG = np.nansum(scores.weighted_PGR[..., list(self.paid)], axis=-1)
        at_C = cuts(groups, self.every)
        so_far_CPG = [self.rewards.score(beginnings(groups, at, self.decode)).total_PG for at in at_C]
        lengths_PG = np.array([[len(c.token_ids) for c in group.completions] for group in groups])
        return replace(
            advantages, values_PGT=advantages_to_go(totals_PG, so_far_CPG, at_C, lengths_PG, self.scale)
        )


def cuts(groups: Sequence[Group], every: int) -> list[int]:
    """Where texts are cut: after ``every`` tokens, twice as many, ..., as long as any text goes on."""
    longest = max(completion.length for group in groups for completion in group.completions)
    return list(range(every, longest, every))


def beginnings(groups: Sequence[Group], at: int, decode: Decode) -> list[Group]:
    """The same groups, each completion cut after so many tokens; shorter ones are as they were."""

    def cut(completion: Completion) -> Completion:
        if completion.length <= at:
            return completion
        ids = completion.token_ids[:at]
        return replace(
            completion,
            token_ids=ids,
            logprobs=completion.logprobs[:at],
            finish_reason="length",
            text=decode(ids),
        )

    return [Group(group.example, tuple(map(cut, group.completions))) for group in groups]


def advantages_to_go(
    totals_PG: FloatArray,
    so_far_CPG: Sequence[FloatArray],
    at_C: Sequence[int],
    lengths_PG: FloatArray,
    scale: bool,
) -> FloatArray:
    """Advantages [P, G, T] of each token, stop token included.

    ``totals_PG`` is what whole texts earned, ``so_far_CPG`` what of it their first ``at_C`` tokens had earned,
    ``lengths_PG`` their tokens with the stop token. Divided by the spread of the totals in the group with ``scale``.
    """
    T = int(lengths_PG.max())
    found_PGT = np.zeros((*totals_PG.shape, T))
    starts, ends = [0, *at_C], [*at_C, T]
    for start, end, so_far_PG in zip(starts, ends, [np.zeros_like(totals_PG), *so_far_CPG], strict=True):
        there_PG = lengths_PG > start
        to_go_PG = np.where(there_PG, totals_PG - so_far_PG, 0.0)
        mean_P1 = to_go_PG.sum(-1, keepdims=True) / np.maximum(there_PG.sum(-1, keepdims=True), 1)
        found_PGT[..., start:end] = np.where(there_PG, to_go_PG - mean_P1, 0.0)[..., None]
    spread_P11 = totals_PG.std(-1)[:, None, None]
    flat_P11 = spread_P11 <= SPREAD_FLOOR
    return np.where(flat_P11, 0.0, found_PGT / np.where(flat_P11, 1.0, spread_P11) if scale else found_PGT)

"""The rewards of one stage together: each by itself, gated, weighed, and summed.

Invariant: ``components`` are what each reward said, ungated and unweighed, so that metrics show what happened
and not what was paid for it; gates and weights act only on what the policy is trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.config import GateConfig, LengthConfig, RewardConfig, StageConfig
from mlx_sumrl.data.answer_schema import load_schema
from mlx_sumrl.rewards.extraction import EntityCoverageReward, ExtractivenessReward, NoveltyReward
from mlx_sumrl.rewards.format import BulletsReward, JsonSchemaReward
from mlx_sumrl.rewards.function import FunctionReward, load_function
from mlx_sumrl.rewards.language import LanguageReward
from mlx_sumrl.rewards.length import LengthReward, WithinReward
from mlx_sumrl.rewards.overlap import OverlapReward
from mlx_sumrl.rewards.repetition import RepetitionReward
from mlx_sumrl.rewards.reward import Reward, group_shape
from mlx_sumrl.rewards.sentence import EndsSentenceReward, WholeSentencesReward
from mlx_sumrl.rollouts.types import Group


@dataclass(frozen=True, slots=True)
class Scores:
    """What R rewards gave G completions of each of P prompts. All arrays are float64.

    NaN means that a reward has nothing to say about a completion (a user's function answered None).
    """

    names: tuple[str, ...]
    """The R rewards, in the order of the stage; the last axis of the arrays below."""
    components: dict[str, NDArray[np.float64]]
    """What each reward said, shape [P, G], before any gate or weight."""
    gated_PGR: NDArray[np.float64]
    """The same with gates applied: what a trainer that normalises each reward by itself starts from."""
    weights_R: NDArray[np.float64]
    weighted_PGR: NDArray[np.float64]
    """``weights_R * gated_PGR``: what each reward contributes. NaN is kept; sum it with ``np.nansum``."""
    total_PG: NDArray[np.float64]
    """Sum of the contributions, missing ones left out (``nansum``, as in TRL); always finite."""

    @property
    def unscored(self) -> int:
        """Completions about which no reward had anything to say; their total is 0."""
        return int(np.isnan(self.gated_PGR).all(axis=-1).sum())

    def scaled(self, factors: Mapping[str, float]) -> Scores:
        """The same with some rewards' weights multiplied; what each reward said stays as it is."""
        factors_R = np.array([factors.get(name, 1.0) for name in self.names])
        weighted_PGR = self.weighted_PGR * factors_R
        return replace(
            self,
            weights_R=self.weights_R * factors_R,
            weighted_PGR=weighted_PGR,
            total_PG=np.nansum(weighted_PGR, axis=-1),
        )

    def means(self) -> dict[str, float | None]:
        """Mean of each component over the completions it has a value for; None where it has none."""
        return {
            name: None if np.isnan(values_PG).all() else float(np.nanmean(values_PG))
            for name, values_PG in self.components.items()
        }


@dataclass(frozen=True, slots=True)
class RewardSet:
    """The rewards of a stage with their weights and gates."""

    rewards: tuple[Reward, ...]
    weights: tuple[float, ...]
    gates: tuple[GateConfig | None, ...]
    """For each reward the condition under which it counts; a gate names another reward of the set."""
    timeouts_s: tuple[float, ...] = ()
    """For each reward the time that it has; only a `Scorer` looks at it. Empty: none has any limit."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(reward.name for reward in self.rewards)

    def score(self, groups: Sequence[Group]) -> Scores:
        """Score every completion with every reward.

        A gated reward counts where the *raw* value of the reward its gate names is at least ``at_least``, and
        is worth ``otherwise`` elsewhere; where that value is missing the gate is shut. A reward that is
        missing itself contributes nothing, gate or no gate. A completion for which all are missing has a
        total of 0.

        Raises:
            ValueError: groups of different sizes, or a reward whose answer is not of shape [P, G].
            UserError: a user's function returned something unusable.
        """
        return self.combined([reward(groups) for reward in self.rewards], group_shape(groups))

    def combined(self, said: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> Scores:
        """What each reward said of groups of this shape, gated, weighed and summed; see `score`."""
        components: dict[str, NDArray[np.float64]] = {}
        for name, answer in zip(self.names, said, strict=True):
            values_PG = np.asarray(answer, dtype=np.float64)
            if values_PG.shape != shape:
                raise ValueError(f"reward {name!r} gave an array of shape {values_PG.shape}, not {shape}")
            components[name] = values_PG

        gated_PGR = np.stack(
            [
                _gated(components[name], gate, components)
                for name, gate in zip(self.names, self.gates, strict=True)
            ],
            axis=-1,
        )
        weights_R = np.asarray(self.weights, dtype=np.float64)
        weighted_PGR = gated_PGR * weights_R
        return Scores(
            names=self.names,
            components=components,
            gated_PGR=gated_PGR,
            weights_R=weights_R,
            weighted_PGR=weighted_PGR,
            total_PG=np.nansum(weighted_PGR, axis=-1),
        )


def _gated(
    values_PG: NDArray[np.float64], gate: GateConfig | None, components: dict[str, NDArray[np.float64]]
) -> NDArray[np.float64]:
    if gate is None:
        return values_PG
    met_PG = components[gate.reward] >= gate.at_least  # False where the gate's reward is NaN
    return np.where(met_PG | np.isnan(values_PG), values_PG, gate.otherwise)


def build_rewards(stage: StageConfig, length: LengthConfig) -> RewardSet:
    """The rewards of a stage; whatever may be missing is looked for here, not in mid-training.

    Raises:
        UserError: a user's function or schema cannot be found, imported or used, or METEOR has no WordNet.
    """
    return RewardSet(
        rewards=tuple(_build(reward, length) for reward in stage.rewards),
        weights=tuple(reward.weight for reward in stage.rewards),
        gates=tuple(reward.gate for reward in stage.rewards),
        timeouts_s=tuple(reward.timeout_s for reward in stage.rewards),
    )


def _build(config: RewardConfig, length: LengthConfig) -> Reward:
    match config.kind:
        case "length":
            return LengthReward(config.label, length.target, length.unit)
        case "within":
            return WithinReward(config.label, length, config.margin)
        case "rouge1" | "rouge2" | "rougeL" | "rougeLsum" | "meteor" | "bleu" | "chrf":
            overlap = OverlapReward(config.label, config.kind)
            overlap.warm_up()
            return overlap
        case "bertscore":
            from mlx_sumrl.metrics.bertscore import BertScorer  # with MLX, which worker processes never load
            from mlx_sumrl.rewards.bertscore import BertScoreReward

            assert config.encoder is not None  # RewardConfig has checked it
            return BertScoreReward(config.label, BertScorer(config.encoder))
        case "language":
            return LanguageReward(config.label)
        case "extractiveness":
            return ExtractivenessReward(config.label)
        case "novelty":
            return NoveltyReward(config.label, config.novel_ngram)
        case "entity_coverage":
            return EntityCoverageReward(config.label, config.entities_of)
        case "format_bullets":
            assert config.bullets is not None  # RewardConfig has checked it
            return BulletsReward(config.label, config.bullets, config.max_words)
        case "json_schema":
            assert config.schema_file is not None
            return JsonSchemaReward(config.label, load_schema(config.schema_file))
        case "ends_sentence":
            return EndsSentenceReward(config.label)
        case "whole_sentences":
            return WholeSentencesReward(config.label, config.min_words)
        case "repetition":
            return RepetitionReward(config.label, config.ngram, config.ngram_of)
        case "judge":
            from mlx_sumrl.rewards.judge import JudgeReward  # brings an HTTP client

            assert config.judge is not None
            return JudgeReward(config.label, config.criterion, config.judge)
        case "function":
            assert config.function is not None  # RewardConfig has checked it
            return FunctionReward(
                config.label, config.function, load_function(config.function), config.completions_as
            )

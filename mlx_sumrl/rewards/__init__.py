"""Completion -> numbers: length, overlap, form, language, your own function; how they are weighed and gated, and
where they are computed. Never imports mlx."""

from mlx_sumrl.rewards.extraction import EntityCoverageReward, ExtractivenessReward, NoveltyReward
from mlx_sumrl.rewards.format import BulletsReward, JsonSchemaReward
from mlx_sumrl.rewards.function import FunctionReward, load_function
from mlx_sumrl.rewards.language import LanguageReward
from mlx_sumrl.rewards.length import LengthReward, WithinReward, is_within, length_in, length_reward
from mlx_sumrl.rewards.overlap import OverlapReward
from mlx_sumrl.rewards.reward import Reward
from mlx_sumrl.rewards.scorer import Scorer
from mlx_sumrl.rewards.scoring import RewardSet, Scores, build_rewards

__all__ = [
    "BulletsReward",
    "EntityCoverageReward",
    "ExtractivenessReward",
    "FunctionReward",
    "JsonSchemaReward",
    "LanguageReward",
    "LengthReward",
    "NoveltyReward",
    "OverlapReward",
    "Reward",
    "RewardSet",
    "Scorer",
    "Scores",
    "WithinReward",
    "build_rewards",
    "is_within",
    "length_in",
    "length_reward",
    "load_function",
]

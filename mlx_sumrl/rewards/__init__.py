"""Completion -> numbers: length, overlap, language, your own function; how they are weighed and gated."""

from mlx_sumrl.rewards.function import FunctionReward, load_function
from mlx_sumrl.rewards.language import LanguageReward
from mlx_sumrl.rewards.length import LengthReward, WithinReward, is_within, length_in, length_reward
from mlx_sumrl.rewards.overlap import RougeLReward
from mlx_sumrl.rewards.reward import Reward
from mlx_sumrl.rewards.scoring import RewardSet, Scores, build_rewards

__all__ = [
    "FunctionReward",
    "LanguageReward",
    "LengthReward",
    "Reward",
    "RewardSet",
    "RougeLReward",
    "Scores",
    "WithinReward",
    "build_rewards",
    "is_within",
    "length_in",
    "length_reward",
    "load_function",
]

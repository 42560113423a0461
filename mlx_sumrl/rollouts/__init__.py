"""What a completion is, the `Sampler` protocol, and the local MLX sampler (loaded only when asked for)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlx_sumrl.rollouts.constraint import Constraint, Matcher
from mlx_sumrl.rollouts.types import Completion, FinishReason, Group, Sampler, Sampling, TrainingSampler

if TYPE_CHECKING:
    from mlx_sumrl.rollouts.local import LocalSampler as LocalSampler

__all__ = [
    "Completion",
    "Constraint",
    "FinishReason",
    "Group",
    "LocalSampler",
    "Matcher",
    "Sampler",
    "Sampling",
    "TrainingSampler",
]


def __getattr__(name: str) -> Any:
    if name == "LocalSampler":  # the only one that needs mlx
        from mlx_sumrl.rollouts.local import LocalSampler

        return LocalSampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""What a step's rollouts say: metrics for metrics.jsonl, and whole groups for rollouts.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlx_sumrl.config import LengthConfig, LengthUnit
from mlx_sumrl.rewards.length import length_in
from mlx_sumrl.rewards.scoring import Scores
from mlx_sumrl.rollouts.types import Group
from mlx_sumrl.training.advantages import Advantages

Metrics = dict[str, float | str]


def rollout_metrics(
    groups: Sequence[Group], scores: Scores, advantages: Advantages, policy_version: int, length: LengthConfig
) -> Metrics:
    """What a step's completions say by themselves, by DESIGN's metric names."""
    completions = [completion for group in groups for completion in group.completions]
    lengths = np.array([length_in(completion, length.unit) for completion in completions])
    stopped = np.array([completion.finish_reason == "stop" for completion in completions])
    ages = np.array([policy_version - completion.policy_version for completion in completions])
    metrics: Metrics = {
        "reward/mean": float(scores.total_PG.mean()),
        "length/mean": float(lengths.mean()),
        "length/within": float((stopped & (np.abs(lengths - length.target) <= length.tolerance)).mean()),
        "length/exact": float((stopped & (lengths == length.target)).mean()),
        "length/unfinished": float((~stopped).mean()),
        "groups/zero_spread": float(advantages.zero_spread),
        "staleness/mean": float(ages.mean()),
        "staleness/max": float(ages.max()),
        "tokens": float(sum(len(completion.token_ids) for completion in completions)),
    }
    metrics |= {f"reward/{name}": mean for name, mean in scores.means().items() if mean is not None}
    return metrics


def rollout_records(
    groups: Sequence[Group], scores: Scores, advantages: Advantages, step: int, stage: str, unit: LengthUnit
) -> list[dict[str, Any]]:
    """One JSON object per group: its prompt, its completions (lengths in ``unit``), what each earned and why."""
    return [
        {
            "step": step,
            "stage": stage,
            "id": group.example.id,
            "prompt": group.example.prompt,
            "reference": group.example.reference,
            "completions": [
                {
                    "text": completion.text,
                    "length": length_in(completion, unit),
                    "finish_reason": completion.finish_reason,
                    "policy_version": completion.policy_version,
                    "rewards": {name: float(values[p, g]) for name, values in scores.components.items()},
                    "total": float(scores.total_PG[p, g]),
                    "advantage": float(advantages.values_PG[p, g]),
                }
                for g, completion in enumerate(group.completions)
            ],
        }
        for p, group in enumerate(groups)
    ]

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
    groups: Sequence[Group],
    scores: Scores,
    advantages: Advantages,
    policy_version: int,
    length: LengthConfig,
    shown: Sequence[Group] | None = None,
) -> Metrics:
    """What a step's completions say by themselves, by DESIGN's metric names; ``shown`` are their answers, where these
    are only a part of them."""
    completions = [completion for group in groups for completion in group.completions]
    answers = [answer for group in shown or groups for answer in group.completions]
    asked = [length.asked(group.example.target) for group in groups for _ in group.completions]
    lengths = np.array([length_in(answer, length.unit) for answer in answers])
    off_by = np.abs(lengths - np.array([one.target for one in asked]))
    allowed = np.array([one.allowed for one in asked])
    stopped = np.array([answer.finish_reason == "stop" for answer in answers])
    ages = np.array([policy_version - completion.policy_version for completion in completions])
    metrics: Metrics = {
        "reward/mean": float(scores.total_PG.mean()),
        "length/mean": float(lengths.mean()),
        "length/within": float((stopped & (off_by <= allowed)).mean()),
        "length/exact": float((stopped & (off_by == 0)).mean()),
        "length/unfinished": float((~stopped).mean()),
        "groups/zero_spread": float(advantages.zero_spread),
        "staleness/mean": float(ages.mean()),
        "staleness/max": float(ages.max()),
        "tokens": float(sum(len(completion.token_ids) for completion in completions)),
    }
    metrics |= {f"reward/{name}": mean for name, mean in scores.means().items() if mean is not None}
    return metrics


def rollout_records(
    groups: Sequence[Group],
    scores: Scores,
    advantages: Advantages,
    step: int,
    stage: str,
    unit: LengthUnit,
    shown: Sequence[Group] | None = None,
) -> list[dict[str, Any]]:
    """One JSON object per group: its prompt, its completions (lengths in ``unit``), what each earned and why.

    Texts and finish reasons are those of whole completions; lengths, and texts under ``answer``, those of what is
    ``shown`` to rewards, where that is only a part.
    """
    stop_PG = advantages.stop_PG
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
                    **({"answer": answer.text} if answer is not completion else {}),
                    "length": length_in(answer, unit),
                    "finish_reason": completion.finish_reason,
                    "policy_version": completion.policy_version,
                    "rewards": {name: float(values[p, g]) for name, values in scores.components.items()},
                    "total": float(scores.total_PG[p, g]),
                    "advantage": float(advantages.values_PG[p, g]),
                    **({} if stop_PG is None else {"stop_advantage": float(stop_PG[p, g])}),
                }
                for g, (completion, answer) in enumerate(
                    zip(group.completions, seen.completions, strict=True)
                )
            ],
        }
        for p, (group, seen) in enumerate(zip(groups, shown or groups, strict=True))
    ]

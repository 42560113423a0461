"""What each method may train on, and what its runs did: steps, rollouts, tokens. Never imports mlx.

A budget is counted in rollouts that are paid for, since that is what costs: stage steps x prompts x completions of
each. Supervised steps beside the stages are counted apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlx_sumrl.config import RunConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.reporting.json_files import rows
from mlx_sumrl.reporting.run_folder import METRICS


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run was trained on, or may be."""

    steps: int
    """Of all stages."""
    rollouts: int
    """Completions that were sampled and paid for."""
    tokens: int | None = None
    """Of these completions, stop tokens counted; None where nothing has been sampled yet."""
    supervised_steps: int = 0
    """Beside the stages."""


def allowed(config: RunConfig) -> Budget:
    """What a run's options let it have at most: every stage may take all of its steps."""
    steps = sum(stage.steps for stage in config.stages)
    supervised = sum(phase.steps for phase in (config.sft, config.stopping) if phase)
    return Budget(steps, steps * _rollouts_of_step(config), None, supervised)


def made(config: RunConfig, folder: Path) -> Budget:
    """What the run in ``folder`` has had by now, by its metrics."""
    names = {stage.name for stage in config.stages}
    lines = [row for _, row in rows(folder / METRICS) if row is not None]
    paid = [row for row in lines if row.get("stage") in names]
    return Budget(
        steps=len(paid),
        rollouts=len(paid) * _rollouts_of_step(config),
        tokens=sum(int(row.get("tokens") or 0) for row in paid),
        supervised_steps=len(lines) - len(paid),
    )


def check_equal(configs: Mapping[str, RunConfig]) -> None:
    """Raises `UserError` where two of the methods, by name, may train on different numbers of rollouts."""
    [first, *others] = configs
    for other in others:
        if allowed(configs[first]).rollouts != allowed(configs[other]).rollouts:
            raise UserError(
                f"methods {first} and {other} have different budgets: {_said(configs[first])}, and "
                f"{_said(configs[other])}: give them the same, or set unequal_budgets to true"
            )


def _rollouts_of_step(config: RunConfig) -> int:
    return config.grpo.prompts_per_step * config.grpo.group_size


def _said(config: RunConfig) -> str:
    budget = allowed(config)
    return (
        f"{budget.steps} steps x {config.grpo.prompts_per_step} prompts x {config.grpo.group_size} completions = "
        f"{budget.rollouts} rollouts"
    )

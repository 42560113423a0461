"""Options: the curriculum."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mlx_sumrl.config.rewards import RewardConfig
from mlx_sumrl.config.room import Room

STEP_METRICS = (
    "reward/mean",
    "length/mean",
    "length/within",
    "length/exact",
    "length/unfinished",
    "ratio/mean",
    "clip_fraction",
    "kl",
    "loss",
    "grad_norm",
)
"""What a stage may wait for, beside ``reward/NAME`` of its own rewards."""


class UntilConfig(Room):
    """Move on early: `metric` has been at least `at_least` for `steps` steps in a row."""

    metric: str = "length/within"
    """Name of the metric, as in metrics.jsonl."""
    at_least: float
    """Value from which it is good enough."""
    steps: int = Field(default=5, gt=0)
    """Steps in a row for which it has to be."""


class StageConfig(Room):
    """One stage of a curriculum."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")
    """Its name in metrics and in evaluation/."""
    steps: int = Field(gt=0)
    """Steps at most."""
    rewards: tuple[RewardConfig, ...] = Field(min_length=1)
    """What completions are paid for."""
    until: UntilConfig | None = None
    """Move on before `steps` once a metric is good enough."""
    learning_rate: float | None = Field(default=None, gt=0)
    """The run's own otherwise."""
    optimizer: Literal["fresh", "kept"] = "kept"
    """Start with empty moments, or go on with those of the stage before."""
    reference: Literal["fresh", "kept"] = "kept"
    """KL to the policy as this stage found it, or to that of the stage before."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        labels = [reward.label for reward in self.rewards]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(
                    f"stage {self.name!r} has two rewards named {label!r}; give one another `name`"
                )
        known = (*STEP_METRICS, *(f"reward/{label}" for label in labels))
        if self.until and self.until.metric not in known:
            raise ValueError(
                f"stage {self.name!r} waits for {self.until.metric!r}, which is no metric of its steps; "
                f"there are {', '.join(known)}"
            )
        for reward in self.rewards:
            if reward.gate and reward.gate.reward not in labels:
                raise ValueError(
                    f"stage {self.name!r}: the gate of {reward.label!r} names {reward.gate.reward!r}, "
                    f"which is not among its rewards ({', '.join(labels)}); add it, with weight 0 if it is only a gate"
                )
        return self

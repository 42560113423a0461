"""Options: the curriculum."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mlx_sumrl.config.rewards import RewardConfig
from mlx_sumrl.config.rollouts import SamplingConfig
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


class ConstraintConfig(Room):
    """Keep the mean of one reward at a level while the others are maximised: how much it weighs adapts.

    After each step its weight's multiplier moves by `rate` times what is missing of the level, down to 0 and up to
    `most`: a Lagrange multiplier by dual ascent (Tessler et al. 2018, arXiv:1805.11074).
    """

    reward: str = "within"
    """Name of the reward of the stage whose mean is kept, as a share such as `within` has one."""
    at_least: float = 0.95
    """The level."""
    rate: float = Field(default=0.1, gt=0)
    """How much the multiplier moves in a step for a shortfall of 1."""
    initial: float = Field(default=1.0, ge=0)
    """What it begins with."""
    most: float = Field(default=10.0, gt=0)
    """What it never exceeds."""
    scales: tuple[str, ...] = ()
    """Names of the rewards whose weights it multiplies; the kept one's alone where none is named."""

    @property
    def scaled(self) -> tuple[str, ...]:
        """Names of the rewards whose weights it multiplies."""
        return self.scales or (self.reward,)


class StageConfig(Room):
    """One stage of a curriculum."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")
    """Its name in metrics and in evaluation/."""
    steps: int = Field(gt=0)
    """Steps at most."""
    rewards: tuple[RewardConfig, ...] = Field(min_length=1)
    """What completions are paid for."""
    constraint: ConstraintConfig | None = None
    """Keep a reward's mean at a level by the weight that it has."""
    until: UntilConfig | None = None
    """Move on before `steps` once a metric is good enough."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak step size; `learning_rate_share` of the run's own otherwise."""
    learning_rate_share: float = Field(default=1.0, gt=0)
    """Peak step size as a share of the run's own, which depends on tuning and model where it is not given."""
    temperature: float | None = Field(default=None, gt=0)
    """At which completions are drawn; `sampling.temperature` otherwise. A last stage near 0 trains what greedy decoding
    will write: loops that it falls into are hardly ever drawn at 1."""
    optimizer: Literal["fresh", "kept"] = "kept"
    """Start with empty moments, or go on with those of the stage before; empty after a supervised phase."""
    reference: Literal["fresh", "kept"] = "kept"
    """KL to the policy as this stage found it, or to that of the stage before; fresh after a supervised phase."""

    def drawing(self, run: SamplingConfig) -> SamplingConfig:
        """How its completions are drawn: as ``run`` says, at the stage's own temperature."""
        return run if self.temperature is None else run.model_copy(update={"temperature": self.temperature})

    @model_validator(mode="after")
    def _check(self) -> Self:
        labels = [reward.label for reward in self.rewards]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(
                    f"stage {self.name!r} has two rewards named {label!r}; give one another `name`"
                )
        if self.learning_rate is not None and self.learning_rate_share != 1:
            raise ValueError(
                f"stage {self.name!r} has learning_rate {self.learning_rate:g} and learning_rate_share "
                f"{self.learning_rate_share:g}, which is a share of the run's: leave one of them out, or "
                "set the share to 1 where it comes with the recipe's own stages"
            )
        known = (*STEP_METRICS, *(f"reward/{label}" for label in labels))
        if self.until and self.until.metric not in known:
            raise ValueError(
                f"stage {self.name!r} waits for {self.until.metric!r}, which is no metric of its steps; "
                f"there are {', '.join(known)}"
            )
        if self.constraint:
            weights = {reward.label: reward.weight for reward in self.rewards}
            for name in (self.constraint.reward, *self.constraint.scales):
                if name not in weights:
                    raise ValueError(
                        f"stage {self.name!r}: its constraint names {name!r}, which is not among its rewards "
                        f"({', '.join(labels)}); add it"
                    )
            if not any(weights[name] for name in self.constraint.scaled):
                raise ValueError(
                    f"stage {self.name!r}: its constraint multiplies the weight of "
                    f"{', '.join(self.constraint.scaled)}, which is 0: give it another"
                )
        for reward in self.rewards:
            if reward.gate and reward.gate.reward not in labels:
                raise ValueError(
                    f"stage {self.name!r}: the gate of {reward.label!r} names {reward.gate.reward!r}, "
                    f"which is not among its rewards ({', '.join(labels)}); add it, with weight 0 if it is only a gate"
                )
        return self

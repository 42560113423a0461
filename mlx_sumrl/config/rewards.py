"""Options: what completions are paid for."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mlx_sumrl.config.room import Room


class GateConfig(Room):
    """A condition on another reward of the same stage."""

    reward: str
    """Name of the reward that must be met."""
    at_least: float = 1.0
    """The value from which it counts as met."""
    otherwise: float = 0.0
    """What the gated reward is worth where the condition is not met."""


class RewardConfig(Room):
    """One reward: what it is, what it weighs, when it counts."""

    kind: Literal["length", "within", "rougeL", "repetition", "language", "function"]
    """`language`: 1 where the completion is in its document's language, else 0. `function` calls your own Python, see
    `function`."""
    name: str = ""
    """Its name in metrics and gates; the kind, or the function's name, otherwise."""
    function: str | None = None
    """`package.module:function` or `path/to/file.py:function` with the signature
    f(prompts, completions, **columns) -> list[float | None]."""
    ngram: int = Field(default=4, gt=0)
    """Tokens of an n-gram whose repeats `repetition` counts."""
    completions_as: Literal["text", "messages"] = "text"
    """How your function gets prompts and completions: strings, or lists of chat messages."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Longest time for one group's scores; those that are not there by then are missing, and counted. Your own function
    gets as long for a whole step, and ends the run where it takes longer."""
    weight: float = 1.0
    """0 logs the reward without training on it."""
    gate: GateConfig | None = None
    """Counts only where this is met."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "function") != (self.function is not None):
            raise ValueError("a reward needs `function: module:name` exactly when its kind is `function`")
        return self

    @property
    def label(self) -> str:
        """Its name in metrics and gates."""
        return self.name or (self.function.rpartition(":")[2] if self.function else self.kind)


class ScoringConfig(Room):
    """Where completions are scored."""

    processes: int | None = Field(default=None, ge=0)
    """Worker processes in which rewards that take time are computed, beside the training: null takes one for each core,
    4 at most, where a stage has a reward worth it. 0 computes them in the training thread, without any time-out."""

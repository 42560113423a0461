"""Options: how completions are drawn, and the length that is asked for."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from mlx_sumrl.config.room import Room

LengthUnit = Literal["tokens", "words", "characters", "sentences", "bullets"]
DEFAULT_LENGTH_UNIT: LengthUnit = "tokens"


class SamplingConfig(Room):
    """How completions are drawn in training."""

    temperature: float = Field(default=1.0, gt=0)
    """Logits are divided by it."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Keep the most likely tokens up to this probability; 1 keeps all."""
    top_k: int = Field(default=0, ge=0)
    """0 switches the filter off."""
    max_tokens: int = Field(default=96, gt=1)
    """Most tokens of a completion, the stop token counted."""
    max_rows: int = Field(default=64, gt=0)
    """Completions that the local sampler decodes at once; more need more memory."""
    cache_bits: Literal[4, 8] | None = None
    """Keep the local sampler's keys and values in 4 or 8 bits; null keeps them as they are. Completions are then
    drawn from another policy, the one with this cache; so is what is recorded of them, and the ratio corrects for
    it. Log p moves by .004 on average with 8 bits and by .07 with 4 (a summariser of 5 M parameters)."""


class LengthConfig(Room):
    """The length that is asked for, in one unit; the stop token is no part of it."""

    target: int = Field(default=64, gt=0)
    """How many are asked for."""
    targets: tuple[int, ...] = ()
    """Ask each row for one of these, drawn by the seed, in place of `target`, which is then only what is asked for
    where nothing else says so. The instruction has to tell it, by `{target_length}`: one policy learns any length."""
    tolerance: int = Field(default=5, ge=0)
    """A completion is within when it stopped by itself and |length - target| <= tolerance."""
    tolerance_share: float = Field(default=0.0, ge=0, lt=1)
    """The same as a share of the target, rounded down, where that is more: 3 and .08 are max(3, 8 %)."""
    unit: LengthUnit = DEFAULT_LENGTH_UNIT
    """`tokens` of the model; `words`, `characters` (as a reader counts them), `sentences` or `bullets` (lines that
    begin with a bullet or a number) of the text. For Chinese and Japanese `characters` is the one to take."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if wrong := [target for target in self.targets if target < 1]:
            raise ValueError(f"length.targets holds {wrong[0]}, and a length is 1 or more")
        least = min(self.targets, default=self.target)
        if self.unit != DEFAULT_LENGTH_UNIT and self.tolerance >= least:
            name = "the least of length.targets," if self.targets else "length.target"
            raise ValueError(
                f"length.tolerance {self.tolerance} is not below {name} {least} ({self.unit}): an empty summary would "
                f"be within; set length.tolerance to at most {least - 1}"
            )
        return self

    def asked(self, target: int | None) -> LengthConfig:
        """The same for one prompt, which asks for ``target``; None where it asks for what all do."""
        return self if target is None else self.model_copy(update={"target": target, "targets": ()})

    @property
    def allowed(self) -> int:
        """How far from the target is still within."""
        return max(self.tolerance, math.floor(self.tolerance_share * self.target + 1e-9))

    @property
    def longest(self) -> int:
        """The most that any prompt asks for."""
        return max(self.targets, default=self.target)

    def __str__(self) -> str:
        """``64 ± 5``, with the unit where it is not tokens; ``24 to 80 ± max(3, 8 %)`` of several."""
        unit = "" if self.unit == DEFAULT_LENGTH_UNIT else f" {self.unit}"
        if not self.targets:
            return f"{self.target} ± {self.allowed}{unit}"
        share = f"{100 * self.tolerance_share:g} %"
        tolerance = f"max({self.tolerance}, {share})" if self.tolerance_share else str(self.tolerance)
        return f"{min(self.targets)} to {self.longest} ± {tolerance}{unit}"

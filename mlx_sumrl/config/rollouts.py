"""Options: how completions are drawn, and the length that is asked for."""

from __future__ import annotations

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
    tolerance: int = Field(default=5, ge=0)
    """A completion is within when it stopped by itself and |length - target| <= tolerance."""
    unit: LengthUnit = DEFAULT_LENGTH_UNIT
    """`tokens` of the model; `words`, `characters` (as a reader counts them), `sentences` or `bullets` (lines that
    begin with a bullet or a number) of the text. For Chinese and Japanese `characters` is the one to take."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.unit != DEFAULT_LENGTH_UNIT and self.tolerance >= self.target:
            raise ValueError(
                f"length.tolerance {self.tolerance} is not below length.target {self.target} ({self.unit}): "
                f"an empty summary would be within; set length.tolerance to at most {self.target - 1}"
            )
        return self

    def __str__(self) -> str:
        """``64 ± 5``, with the unit where it is not tokens."""
        unit = "" if self.unit == DEFAULT_LENGTH_UNIT else f" {self.unit}"
        return f"{self.target} ± {self.tolerance}{unit}"

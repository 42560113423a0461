"""Options: how completions are drawn, and the length that is asked for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlx_sumrl.config.room import Room


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
    """The length that is asked for. Only tokens count here; the stop token does not."""

    target: int = Field(default=64, gt=0)
    """Tokens asked for."""
    tolerance: int = Field(default=5, ge=0)
    """A completion is within when it stopped by itself and |length - target| <= tolerance."""

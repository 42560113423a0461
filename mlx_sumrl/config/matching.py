"""Options: when an item of an answer counts as right."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlx_sumrl.config.room import Room

Matching = Literal["exact", "normalised"]


class MatchingConfig(Room):
    """How the fields of JSON answers are held against those of references."""

    matching: Matching = "exact"
    """`exact`: same case, spaces and type (10 and 10.0 are one number). `normalised`: texts without differences of
    case, white space, Unicode form (NFKC) and punctuation at their ends."""
    soft_fields: tuple[str, ...] = ()
    """Lists of free text (`key_insights`), whose items are paired one to one where they are like each other."""
    soft_threshold: float = Field(default=0.5, gt=0, le=1)
    """Least ROUGE-L F1 of two items that may be a pair in `soft_fields`."""
    text_fields: tuple[str, ...] = ("summary",)
    """Texts that ROUGE, METEOR and BLEU are measured of; other texts are right or wrong."""

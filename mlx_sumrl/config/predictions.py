"""Options: predictions that are files, scored without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from mlx_sumrl.config.data import DataConfig
from mlx_sumrl.config.masking import MaskingConfig
from mlx_sumrl.config.matching import MatchingConfig
from mlx_sumrl.config.room import Room


class PredictionFilesConfig(Room):
    """Which files, and what their columns are called."""

    predictions: Path
    """What was answered: a .jsonl, .json (a list of objects), .csv or .parquet file with a column for each field; in a
    .csv file lists are JSON."""
    references: Path
    """What should have been: a file of the same kind, or conversations (`messages`) whose last answer is JSON."""
    id_column: str = "id"
    """Names a row in both files; `metadata.item_id` reaches inside."""
    reference_id_column: str | None = None
    """The same in the references, where it has another name there."""
    valid_column: str = "is_valid_json"
    """Whether the answer was valid JSON (true, 1, "true"): where not, all its fields are missing. A file without it has
    valid answers only, or those of `answer_column`."""
    answer_column: str | None = None
    """The column that holds the whole answer, as an object or as JSON text, in place of a column for each field."""
    messages_column: str = MaskingConfig().messages_column
    """Conversations in the references."""
    fields: tuple[str, ...] = ()
    """Score only these; empty takes all that the references have."""
    rename: dict[str, str] = Field(default={})
    """Field of the references -> what the predictions call it: `'{key_insights: insights}'`."""
    samples: bool = False
    """Several answers to one id are meant: each is a row, and how much they agree is measured."""
    sample_column: str = "sample"
    """Where the predictions have this column, several answers to one id are meant, and it tells them apart."""
    missing: Literal["left_out", "invalid"] = "left_out"
    """A reference without a prediction: left out and counted, or scored as an answer that is not valid."""
    max_unmatched_share: float = Field(default=DataConfig().max_unusable_share, ge=0, le=1)
    """Stop when a larger share than this of either file's rows has no partner in the other, or cannot be read."""


class PredictionsConfig(MatchingConfig, PredictionFilesConfig):
    """Which files, and when an item in them is right."""

    out: Path | None = None
    """Write all scores, those of each row too, as JSON here."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        unknown = [name for name in self.soft_fields if self.fields and name not in self.fields]
        if unknown:
            raise ValueError(
                f"soft_fields has {unknown[0]!r}, which fields leaves out: add it there, or take it out here"
            )
        return self

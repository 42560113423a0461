"""Options: documents to examples."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from mlx_sumrl.config.rollouts import LengthUnit
from mlx_sumrl.config.room import Room


class GrammarConfig(Room):
    """Posts made from a small grammar, for a quickstart that needs no data."""

    train_posts: int = Field(default=1200, gt=0)
    """Posts made for training."""
    evaluation_posts: int = Field(default=100, gt=0)
    """Posts made for evaluation; none of them is among the training posts."""


class DataConfig(Room):
    """Documents -> examples."""

    train: str | None = None
    """A .jsonl, .csv or .parquet file, the name of a Hugging Face dataset, or a declared source (as `xsum`)."""
    evaluation: str | None = None
    """The same for held-out rows; evaluation is skipped without it."""
    train_split: str = "train"
    """Split of a Hugging Face dataset to train on."""
    evaluation_split: str = "validation"
    """Split of a Hugging Face dataset to evaluate on."""
    grammar: GrammarConfig | None = None
    """Make posts from a small grammar instead of reading files."""
    document_column: str = "document"
    """Column that holds the text to summarise."""
    reference_column: str = "summary"
    """Column that holds the summary a person wrote, or a list of several: evaluation uses all, training the first."""
    more_reference_columns: tuple[str, ...] = ()
    """Columns that hold further summaries of the same text, for evaluation; a row may leave them empty."""
    id_column: str | None = None
    """Column that names a row; file and line number otherwise."""
    instruction: str = "Summarize the following text in {target_length} {length_unit}.\n\n{document}"
    """The user's turn; {document}, {target_length}, {length_unit} (`tokens`, ...) and any column's name in braces are
    filled in."""
    system: str | None = None
    """The system prompt, if any."""
    chat_template: Literal["model", "none"] = "model"
    """`model`: the tokenizer's own chat template. `none`: the instruction as plain text."""
    enable_thinking: bool | None = None
    """Given to a chat template that has this switch (Qwen3's); null leaves the choice to the template."""
    max_prompt_tokens: int = Field(default=512, gt=0)
    """A longer prompt loses the end of its document, never any of its template."""
    train_rows: int | None = Field(default=None, gt=0)
    """Read only the first rows."""
    evaluation_rows: int | None = 200
    """Evaluate on the first rows only, or on so many of the last with a minus (-300); null takes all."""
    max_unusable_share: float = Field(default=0.05, ge=0, le=1)
    """Stop when a larger share of rows than this cannot be used."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "{document}" not in self.instruction:
            raise ValueError("data.instruction must contain {document}, where the text to summarise goes")
        if self.evaluation_rows == 0:
            raise ValueError("data.evaluation_rows 0 leaves nothing to evaluate on: write null for all rows")
        if self.grammar is not None and (self.train or self.evaluation):
            raise ValueError(
                "data.grammar makes its own rows: leave out data.train and data.evaluation, or data.grammar"
            )
        return self

    def check_tells_length(self, option: str) -> None:
        """Raises ValueError where the instruction has no place for the lengths that ``option`` gives each row."""
        if "{target_length}" not in self.instruction:
            raise ValueError(
                f"{option} tells each row another length, and data.instruction has no place for it: write "
                "{target_length} into it"
            )

    def asking_in(self, unit: LengthUnit) -> Self:
        """These options with ``{length_unit}`` written out in the instruction."""
        # {{ and }} are braces of the text.
        written = re.sub(
            r"\{\{|\}\}|\{length_unit\}", lambda m: unit if len(m[0]) > 2 else m[0], self.instruction
        )
        return self.model_copy(update={"instruction": written})

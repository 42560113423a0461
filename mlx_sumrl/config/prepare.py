"""Options: from raw sources to train, validation and test rows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from mlx_sumrl.config.room import Room

SplitBy = Literal["random", "time", "source"]
Unit = Literal["words", "characters", "tokens"]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""A list of names; one alone needs no brackets in a YAML file."""


class ReadingConfig(Room):
    """How a source is read, where its declaration does not say it."""

    document_column: str | None = None
    """Column that holds the text to summarise; `document` where nothing else is declared. A list of texts is
    joined."""
    summary_column: str | None = None
    """Column that holds the summary; `summary` where nothing else is declared."""
    messages_column: str | None = None
    """Column that holds a chat (a list of role and content), in place of document and summary."""
    id_column: str | None = None
    """Column that names a row; `id` where there is one, file and line number otherwise."""
    date_column: str | None = None
    """Column with a date (ISO 8601, RFC 2822, or seconds since 1970); kept, and the rows are split by it."""
    group_column: str | None = None
    """Column whose equal values stay in one split (an author, a site, a topic); kept."""
    keep_columns: Names = ()
    """Further columns to keep, as those that an instruction names."""
    instruction: str | None = None
    """What a model is asked for; {document} stands for the text. It goes into the card."""
    licence: str | None = None
    """Licence of the rows; it goes into the card."""
    language: str | None = None
    """ISO 639-1 code to write where a row has too little text to tell its language."""
    rows: int | None = Field(default=None, gt=0)
    """Read only the first rows of each split of a source."""


class SourceConfig(ReadingConfig):
    """One source. What it leaves out is taken from the options of the same name at the top."""

    source: str
    """A declared source (see the top of this page), a file or folder, or a Hugging Face dataset."""
    files: Names = ()
    """Files or folders to read in place of the hub; on the command line --from after its --source."""
    config_name: str | None = None
    """Configuration of a Hugging Face dataset, as `3.0.0`."""
    limit: int | None = Field(default=None, gt=0)
    """Take at most so many of its usable rows, drawn at random, all splits together; `rows` reads the first only."""
    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Its part of the rows beside the other sources' weights: 3 beside 1 makes three quarters. As many rows are drawn
    as the scarcest source allows, none twice. Give each source one, or none; without weights all rows are taken."""


class SplitConfig(Room):
    """How rows are shared out."""

    by: SplitBy | None = None
    """`random`; `time`, the earliest train and the latest test; `source`, as the source or its files' names have
    it. null: by time where a date column is named, randomly otherwise."""
    validation: float = Field(default=0.05, ge=0)
    """Validation rows: a share below 1, a number of rows otherwise."""
    test: float = Field(default=0.05, ge=0)
    """Test rows: a share below 1, a number of rows otherwise."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, size in (("validation", self.validation), ("test", self.test)):
            if size > 1 and size != int(size):
                raise ValueError(f"split.{name} is {size}: a share is below 1, a number of rows is whole")
        shares = sum(size for size in (self.validation, self.test) if size < 1)
        if shares >= 1:
            raise ValueError(
                f"split.validation {self.validation} and split.test {self.test} leave no row to train on; "
                "make them smaller"
            )
        return self


class DuplicatesConfig(Room):
    """Rows with the same document: exactly, but for case and white space; or nearly."""

    near: float | None = Field(default=0.7, gt=0.2, le=1)
    """Documents are near duplicates from this Jaccard similarity of their shingles on; null looks for exact ones
    only."""
    shingle: int = Field(default=3, gt=0)
    """Words of a shingle; a Chinese or Japanese character counts as a word."""
    permutations: int = Field(default=128, ge=16, le=1024)
    """Hashes of a MinHash signature: more miss fewer pairs at a low threshold, and take longer."""
    drop: Literal["none", "exact", "near"] = "none"
    """Keep only the first of duplicates; otherwise all are kept, in one split."""


class FilterConfig(Room):
    """Which rows are left out; each is counted under its reason."""

    unit: Unit = "words"
    """What lengths are counted in here; tokens need --tokenizer."""
    min_summary: int | None = Field(default=None, gt=0)
    """A shorter summary is left out; an empty one always is."""
    max_summary: int | None = Field(default=None, gt=0)
    """A longer summary is left out."""
    min_document: int | None = Field(default=None, gt=0)
    """A shorter document is left out; an empty one always is."""
    max_document: int | None = Field(default=None, gt=0)
    """A longer document is left out. Training cuts it at data.max_prompt_tokens instead."""
    copies: bool = False
    """Keep rows whose summary holds the whole document."""
    languages: Names = ()
    """Keep only documents in these languages (`en,de`), with a summary in the same one."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("summary", "document"):
            least, most = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if least is not None and most is not None and least > most:
                raise ValueError(
                    f"filters.min_{name} {least} is above filters.max_{name} {most}, which leaves no row; "
                    "swap them"
                )
        for code in self.languages:
            if not re.fullmatch("[a-z]{2,3}", code):
                raise ValueError(f"filters.languages names {code!r}: give ISO 639 codes, as en, de or zh")
        return self


class PrepareConfig(ReadingConfig):
    """Sources in, a folder with train, validation and test rows and a card out."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    """What to read, as a list; one --source for each on the command line."""
    out: Path
    """Folder to write; it is complete or not there."""
    replace: bool = False
    """Write over a folder that was prepared before."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """One seed gives one split."""
    max_unusable_share: float = Field(default=0.05, ge=0, le=1)
    """Stop when a larger share of records than this cannot be used: broken, without text, or without a readable
    date where they are split by it. What filters leave out does not count."""
    tokenizer: str | None = None
    """Folder of a model or tokenizer: lengths are then counted in its tokens too."""
    split: SplitConfig = SplitConfig()
    duplicates: DuplicatesConfig = DuplicatesConfig()
    filters: FilterConfig = FilterConfig()
    leakage: Literal["error", "drop", "allow"] = "error"
    """What is done when a document of one split, or a near duplicate, or its group, is in another too: stop, leave
    it out of the split that trains more, or only write it into the card."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.filters.unit == "tokens" and self.tokenizer is None:
            raise ValueError("filters.unit is tokens, which needs --tokenizer, the folder of a model")
        unweighted = [one.source for one in self.sources if one.weight is None]
        if unweighted and len(unweighted) < len(self.sources):
            raise ValueError(
                f"{unweighted[0]} has no weight, but another source has one: give each source a weight, or none"
            )
        dated = [one.date_column or self.date_column for one in self.sources]
        if self.split.by == "time" and not all(dated):
            raise ValueError("split.by is time, which needs --date_column, a column with a date")
        return self

    @property
    def weighted(self) -> bool:
        """Whether sources are mixed by weight."""
        return self.sources[0].weight is not None

    @property
    def split_by(self) -> SplitBy:
        """How rows are shared out, once null is resolved."""
        if self.split.by is not None:
            return self.split.by
        return "time" if all(one.date_column or self.date_column for one in self.sources) else "random"

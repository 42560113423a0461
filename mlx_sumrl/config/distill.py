"""Options: a dataset from a larger model's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mlx_sumrl.config.asking import AskingConfig
from mlx_sumrl.config.data import DataConfig
from mlx_sumrl.config.room import Room

LengthUnit = Literal["words", "characters", "tokens"]


class TeacherSourceConfig(Room):
    """A file or dataset of documents; just its name where nothing else has to be said."""

    file: str
    """A .jsonl, .csv or .parquet file, or the name of a Hugging Face dataset."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Its part of the documents, beside the other sources' weights; a source that ends leaves the rest to them."""
    document_column: str | None = None
    """Column that holds the text to summarise; null takes `document_column` above."""
    id_column: str | None = None
    """Column that names a row; null takes `id_column` above."""
    language: str | None = None
    """Language of its documents, as `de`; null: found out where it is needed."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    rows: int | None = Field(default=None, gt=0)
    """Read only the first rows."""

    @model_validator(mode="before")
    @classmethod
    def _just_a_name(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value


class AnswerFilterConfig(Room):
    """Which answers become rows; all others stay in the ledger and are counted under a reason."""

    language: str = "any"
    """`document`: that of its document; a code, as `de`; or `any`. Texts too short to tell are kept."""
    language_confidence: float = Field(default=0.8, ge=0, le=1)
    """An answer goes only when its language is another with at least this confidence."""
    unit: LengthUnit = "words"
    """What `shortest` and `longest` count. Words are parted by spaces: count characters for Chinese."""
    shortest: int = Field(default=1, ge=1)
    """Shortest answer kept."""
    longest: int | None = Field(default=None, gt=0)
    """Longest answer kept."""
    tokenizer: str | None = None
    """Folder of the tokenizer that counts tokens, for `unit: tokens`."""
    pattern: str | None = None
    """A regular expression that the whole answer must match."""
    reject: tuple[str, ...] = ()
    """Regular expressions; an answer that holds a match of one goes, as `(?i)^as an ai`."""
    json_schema: Path | None = None
    """File with a JSON schema; the answer must be JSON, and nothing around it, that the schema allows."""
    unfinished: bool = False
    """Keep answers that were cut off at `max_tokens`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.longest is not None and self.longest < self.shortest:
            raise ValueError(
                f"filter.longest {self.longest} is below filter.shortest {self.shortest}: no answer fits both"
            )
        if (self.unit == "tokens") != (self.tokenizer is not None):
            raise ValueError(
                "filter.unit tokens and filter.tokenizer (a folder) go together: give both, or neither"
            )
        return self


class TaughtDocumentsConfig(Room):
    """Which documents go to which teacher, and with which instruction."""

    out: Path
    """Folder of the dataset and its ledger, the record of every answer; name it again to go on."""
    teacher: str | None = None
    """URL of an OpenAI-compatible server, with or without /v1."""
    source: tuple[TeacherSourceConfig, ...] = ()
    """Files or datasets of documents, parted by commas; with weights, as '[{file: a.jsonl, weight: 3}, …]'."""
    from_ledger: bool = False
    """Ask nothing: write the dataset again from the ledger in `out`, with the filters and shares given now."""
    document_column: str = "document"
    """Column that holds the text to summarise."""
    id_column: str | None = None
    """Column that names a row; file and line number otherwise."""
    rows: int | None = Field(default=None, gt=0)
    """Ask about so many documents, all sources together; null takes all."""
    longest_document: int | None = Field(default=None, gt=0)
    """Leave out documents of more characters."""
    same: Literal["exact", "normalised"] = "normalised"
    """What is there twice, and goes: the same characters, or the same but for case, spaces and Unicode forms."""
    max_unusable_share: float = Field(default=DataConfig().max_unusable_share, ge=0, le=1)
    """Stop before anything is asked when a larger share of the rows than this cannot be read or is empty."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Which rows come first, and which are for validation."""

    instruction: str = (
        "Summarize the following text in the language it is written in, in two or three sentences. "
        "Answer with the summary alone.\n\n{document}"
    )
    """The user's turn; {document} and any column's name in braces are filled in."""
    instructions: dict[str, str] = Field(default={})
    """Instructions of their own for languages, as '{de: "Fasse zusammen:\\n\\n{document}"}'."""
    system: str | None = None
    """The system prompt, if any."""
    answers: int = Field(default=1, gt=0)
    """Answers asked for each document; more than one needs a temperature."""


class DistillConfig(AskingConfig, TaughtDocumentsConfig):
    """Which documents, which teacher, and what its answers may cost."""

    filter: AnswerFilterConfig = AnswerFilterConfig()
    validation_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the documents that goes to validation.jsonl."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.from_ledger:
            for name, wish in (
                ("teacher", "the URL of a server, as http://127.0.0.1:8080"),
                ("model", "the name of a model there"),
                ("source", "a file of documents"),
            ):
                if not getattr(self, name):
                    raise ValueError(f"{name} is missing: give --{name}, {wish}")
        for name, text in {"instruction": self.instruction, **self.instructions}.items():
            if "{document}" not in text:
                where = name if name == "instruction" else f"instructions.{name}"
                raise ValueError(f"{where} must contain {{document}}, where the text to summarise goes")
        if self.answers > 1 and self.temperature == 0:
            raise ValueError(
                f"answers {self.answers} with temperature 0 would be the same answer {self.answers} times: "
                "give --temperature 0.7 or so"
            )
        return self

    @property
    def asks_language(self) -> bool:
        """Whether languages have to be found out."""
        of_documents = bool(self.instructions) and any(one.language is None for one in self.source)
        return of_documents or self.filter.language != "any"

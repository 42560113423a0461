"""Options: a dataset from a larger model's answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mlx_sumrl.config.data import DataConfig
from mlx_sumrl.config.room import Room

LengthUnit = Literal["words", "characters", "tokens"]
OWN_FIELDS = (
    "model",
    "messages",
    "n",
    "stream",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
)
"""Fields of a request that have an option of their own, or that this program relies on."""


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


class PriceConfig(Room):
    """What the teacher costs, in any currency, for each million tokens."""

    prompt: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """For a million prompt tokens."""
    completion: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """For a million completion tokens."""

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Cost of so many tokens."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


class RetryConfig(Room):
    """What is done about requests that fail."""

    attempts: int = Field(default=6, gt=0)
    """Times that a request is sent in one run, before its row counts as failed."""
    first_wait_s: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Longest wait before the second attempt; it doubles with each, and a random part of it is waited."""
    longest_wait_s: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    """It doubles no further than this. A `Retry-After` of the server comes first where it is longer."""
    longest_retry_after_s: float = Field(default=600.0, ge=0, allow_inf_nan=False)
    """Where the server asks to wait longer than this, the run stops and says so."""
    refused: bool = False
    """Ask again about rows that the server refused in an earlier run while it answered others."""
    failures_in_a_row: int = Field(default=20, gt=0)
    """The run stops when so many rows have failed and none has succeeded in between."""


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


class DistillConfig(Room):
    """Which documents, which teacher, and what its answers may cost."""

    out: Path
    """Folder of the dataset and its ledger, the record of every answer; name it again to go on."""
    teacher: str | None = None
    """URL of an OpenAI-compatible server, with or without /v1."""
    model: str | None = None
    """Name of the model there; `default_model` is the one that mlx_lm.server was started with."""
    source: tuple[TeacherSourceConfig, ...] = ()
    """Files or datasets of documents, parted by commas; with weights, as '[{file: a.jsonl, weight: 3}, …]'."""
    from_ledger: bool = False
    """Ask nothing: write the dataset again from the ledger in `out`, with the filters and shares given now."""
    key_variable: str | None = None
    """Environment variable that holds the server's API key, as OPENAI_API_KEY. No key is sent without it."""

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
    temperature: float | None = Field(default=0.0, ge=0, allow_inf_nan=False)
    """0 is greedy; null leaves it to the server."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Keep the most likely tokens up to this probability; null leaves it to the server."""
    max_tokens: int = Field(default=512, gt=0)
    """Most tokens of an answer."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name of that field in a request; newer hosted models want the second."""
    extra: dict[str, Any] = Field(default={})
    """More fields of a request, as '{chat_template_kwargs: {enable_thinking: false}}'."""
    answers: int = Field(default=1, gt=0)
    """Answers asked for each document; more than one needs a temperature."""

    concurrency: int = Field(default=8, gt=0)
    """Requests under way at once."""
    timeout_s: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    """Longest a request may take."""
    retry: RetryConfig = RetryConfig()
    price: PriceConfig = PriceConfig()
    max_cost: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Spend no more than this, all runs on the ledger together; needs `price`."""
    max_total_tokens: int | None = Field(default=None, gt=0)
    """Use no more prompt and completion tokens than this, all runs on the ledger together."""

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
        if self.max_cost is not None and self.price == PriceConfig():
            raise ValueError(
                "max_cost needs prices: give --price.prompt and --price.completion, for a million tokens"
            )
        try:
            json.dumps(self.extra, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"extra cannot be sent as JSON ({error}): put texts such as dates in quotes"
            ) from None
        own = [name for name in self.extra if name in OWN_FIELDS]
        if own:
            raise ValueError(f"extra.{own[0]} cannot be set there: leave it out, or use its own option")
        return self

    @property
    def asks_language(self) -> bool:
        """Whether languages have to be found out."""
        of_documents = bool(self.instructions) and any(one.language is None for one in self.source)
        return of_documents or self.filter.language != "any"

"""Options: requests to an OpenAI-compatible server: what is sent, how failures are met, what it may cost."""

from __future__ import annotations

import json
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mlx_sumrl.config.room import Room

OWN_FIELDS = (
    "model",
    "messages",
    "n",
    "stream",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "logprobs",
    "top_logprobs",
)
"""Fields of a request that have an option of their own, or that this program relies on."""


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


class AskingConfig(Room):
    """Which model is asked, how many requests are under way, and the caps that hold before one is sent."""

    model: str | None = None
    """Name of the model there; `default_model` is the one that mlx_lm.server was started with."""
    key_variable: str | None = None
    """Environment variable that holds the server's API key, as OPENAI_API_KEY. No key is sent without it."""
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

    @model_validator(mode="after")
    def _check_asking(self) -> Self:
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

"""Options: what supervised training learns of a row."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mlx_sumrl.config.room import Room


class ReasoningConfig(Room):
    """Reasoning that can be switched on and off by the system prompt."""

    share: float = Field(default=0.6, ge=0, le=1)
    """Share of the rows with a `<think>` trace that keep it, exact to the row; the others learn the answer alone."""
    on: str = Field(default="reasoning on", min_length=1)
    """System prompt of the rows that keep their trace; it follows the row's own, if there is one."""
    off: str = Field(default="reasoning off", min_length=1)
    """System prompt of all other rows."""
    seed: int = Field(default=0, ge=0)
    """Which rows keep their trace; one seed gives one choice."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.on.strip() == self.off.strip():
            raise ValueError(f"masking.reasoning.on and off are both {self.on!r}: give each its own words")
        return self


class MaskingConfig(Room):
    """What supervised training learns of a row."""

    learn: Literal["answer", "assistant_turns", "all"] = "answer"
    """`answer`: the last answer. `assistant_turns`: every answer of a conversation. `all`: the prompt too. Each
    answer's end of turn is learned with it."""
    messages_column: str = "messages"
    """Column with conversations, lists of {role, content}; read in rows that have no data.document_column."""
    too_long: Literal["error", "drop"] = "error"
    """What becomes of a row whose answer leaves no room for its document, or is longer than `max_answer_tokens`."""
    max_answer_tokens: int | None = Field(default=None, gt=0)
    """Tokens of an answer, its stop token included; null: as many as leave room for some of the document."""
    reasoning: ReasoningConfig | None = None
    """Teach to think in `<think>` tags or not to, as the system prompt says."""

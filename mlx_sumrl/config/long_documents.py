"""Options: a document longer than a prompt."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from mlx_sumrl.config.room import Room


class LongDocumentsConfig(Room):
    """How a text that does not fit one prompt is read: in overlapping chunks, whose summaries are summarised again."""

    chunk_tokens: int | None = Field(default=None, gt=1)
    """Most tokens of text in a chunk; null: as many as a prompt has room for (data.max_prompt_tokens)."""
    overlap_tokens: int | None = Field(default=None, ge=0)
    """Most tokens of a chunk that the next one begins with again; null: a tenth of a chunk."""
    part_tokens: int | None = Field(default=None, gt=0)
    """Tokens that a partial summary has room for at least, up to half a chunk; it has more where all of them then still
    fit one prompt. null: half of the asked length, or a quarter of max_tokens where that is not in tokens. More leave
    more in, and take more rounds, each of which loses something too."""
    join_instruction: str | None = None
    """The user's turn for a text that is made of partial summaries; null: data.instruction, as for any other text."""
    rounds: int = Field(default=8, gt=0)
    """Most rounds of partial summaries before the last one."""
    batch_size: int = Field(default=8, gt=0)
    """Chunks summarised at once."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        chunk, overlap = self.chunk_tokens, self.overlap_tokens
        if chunk is not None and overlap is not None and 2 * overlap > chunk:
            raise ValueError(
                f"long.overlap_tokens {overlap} is more than half of long.chunk_tokens {chunk}: set it to at most "
                f"{chunk // 2}"
            )
        if self.join_instruction is not None and "{document}" not in self.join_instruction:
            raise ValueError("long.join_instruction must contain {document}, where the partial summaries go")
        return self

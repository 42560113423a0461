"""Options: which part of a completion is its answer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlx_sumrl.config.room import Room


class AnswerConfig(Room):
    """Which part of a completion rewards, metrics and samples look at. Training learns from all of its tokens."""

    after: str | None = Field(default=None, min_length=1)
    """What ends the reasoning before an answer, as `</think>`: the answer is all that follows the last one. A
    completion without it has no answer: it counts as unfinished and its text as empty. null: all is answer."""
    length: Literal["answer", "completion"] = "answer"
    """What is as long as asked: the tokens after `after` (white space among them), or the reasoning too."""

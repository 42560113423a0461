"""What the training loop sees of a row of data. No mlx here: workers and rewards use it too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt, tokenised once and for all, with what is needed to score an answer to it."""

    id: str
    """Where it came from, for people: the row's own id, or ``file.jsonl:17``."""
    prompt_ids: tuple[int, ...]
    """The whole prompt as the model reads it, chat template included, at most ``max_prompt_tokens`` long."""
    prompt: str
    """The same prompt as text, before any truncation."""
    document: str
    """The article alone, whole."""
    reference: str
    """The summary a person wrote."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Every column of the row, handed to reward functions by name."""
    references: tuple[str, ...] = ()
    """All summaries that people wrote, `reference` first, where there are several; for evaluation."""
    target: int | None = None
    """The length that its prompt asks for; None where all prompts of a run ask for the same."""

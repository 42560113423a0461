"""What supervised training works on: token ids, and which of them are learned.

Invariant: `trained` says of each answer token whether it is learned, and at least one is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SupervisedExample:
    """A row as token ids. In a conversation all after the first answer's beginning is `answer_ids`."""

    id: str
    """The row's name, for people."""
    prompt_ids: tuple[int, ...]
    """What is given; at least one token, never learned."""
    answer_ids: tuple[int, ...]
    """What follows it [T], stop tokens included."""
    trained: tuple[bool, ...]
    """[T]: which of them count in the loss."""
    conversation: bool = False
    """Whether its prompt is a conversation's, which no instruction of ours has asked for a length."""

    def __post_init__(self) -> None:
        if not self.prompt_ids or len(self.answer_ids) != len(self.trained) or not any(self.trained):
            raise ValueError(
                f"row {self.id}: {len(self.prompt_ids)} prompt ids, {len(self.answer_ids)} answer ids, "
                f"{len(self.trained)} marks of which {sum(self.trained)} are set"
            )

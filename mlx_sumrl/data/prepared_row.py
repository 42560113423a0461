"""A row on its way from a source to a split. Never imports mlx.

Invariant: `document` and `summary` hold text; of a chat they are what its user and its last answer say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from mlx_sumrl.data.declared_sources import SplitName

OWN_COLUMNS = ("id", "document", "summary", "messages", "source", "language")
"""Columns that every prepared row has (document and summary, or messages)."""


@dataclass(slots=True)
class PreparedRow:
    """One usable row."""

    id: str
    """Unique among all rows."""
    document: str
    """The text to summarise; of a chat, its user's turns."""
    summary: str
    """Its summary; of a chat, the last answer."""
    source: str
    """Name of the source."""
    messages: list[dict[str, Any]] | None = None
    """The chat as it was; None for a document with a summary."""
    compared: str = ""
    """The document as duplicates are looked for: without what all chats of a source begin and end with."""
    split: SplitName | None = None
    """The split that the source has it in, if any says so."""
    date: datetime | None = None
    """Its moment; None where no date column is named, or nothing readable is in it."""
    group: str | None = None
    """Rows of a group stay in one split; None is in no group."""
    kept: dict[str, Any] = field(default_factory=dict)
    """Further columns, written as they were."""
    language: str = ""
    """ISO 639 code."""

    def to_json(self) -> dict[str, Any]:
        """The line of a prepared file."""
        text: dict[str, Any] = (
            {"document": self.document, "summary": self.summary}
            if self.messages is None
            else {"messages": self.messages}
        )
        return {"id": self.id, **text, "source": self.source, "language": self.language, **self.kept}

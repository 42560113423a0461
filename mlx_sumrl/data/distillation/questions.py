"""Document -> the messages of a request, and the key under which its answer is kept. Never imports mlx.

Invariant: the key is a function of the messages and of which answer to them it is (first, second, ...). What comes
from data is inserted once and never read as an instruction's placeholder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlx_sumrl.config import DistillConfig
from mlx_sumrl.data.distillation.documents import Document
from mlx_sumrl.endpoint.client import Message, Reply
from mlx_sumrl.errors import UserError

_PLACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Question:
    """One answer that is wanted."""

    key: str
    document: Document
    sample: int
    """Which answer to this document, counted from 0."""

    @property
    def row(self) -> str:
        """File and line of its document."""
        return self.document.row


def identity(config: DistillConfig) -> dict[str, object]:
    """The options that decide what is asked, and so which answers belong together in one ledger."""
    names = ("model", "instruction", "instructions", "system", "temperature", "top_p", "max_tokens", "extra")
    kept: dict[str, object] = {name: getattr(config, name) for name in names}
    return dict(json.loads(json.dumps(kept)))  # as it is read back


class Instructions:
    """The instructions, checked once and then filled document by document."""

    def __init__(self, config: DistillConfig) -> None:
        """Raises `UserError` for one that does not hold the document exactly once."""
        self._system = config.system
        self._parts = {"instruction": _parse("instruction", config.instruction)}
        for language, text in config.instructions.items():
            self._parts[language] = _parse(f"instructions.{language}", text)

    @property
    def columns(self) -> list[str]:
        """The columns that they name, besides the document's."""
        places = [place for parts in self._parts.values() for _, place in parts if place is not None]
        return [place for place in dict.fromkeys(places) if place != "document"]

    def messages(self, question: Question) -> list[Message]:
        """System prompt and user's turn; the document has all of `columns`."""
        return self._messages(question.document)

    def record(self, question: Question, reply: Reply) -> Mapping[str, Any]:
        """The document and where it is from, beside its answer."""
        document = question.document
        return {
            "id": document.id,
            "source": document.source,
            "order": document.order,
            "sample": question.sample,
            "document": document.text,
            "language": document.language,
        }

    def _messages(self, document: Document) -> list[Message]:
        parts = self._parts.get(document.language or "", self._parts["instruction"])
        turn = ""
        for text, place in parts:
            turn += text
            if place is not None:
                turn += document.text if place == "document" else str(document.fields[place])
        system = [{"role": "system", "content": self._system}] if self._system else []
        return [*system, {"role": "user", "content": turn}]

    def questions(self, documents: Sequence[Document], answers: int) -> list[Question]:
        """`answers` questions for each document, the first of all documents before the second of any."""
        contents = [json.dumps(self._messages(document), sort_keys=True) for document in documents]
        return [
            Question(hashlib.sha256(f"{sample}\n{content}".encode()).hexdigest()[:32], document, sample)
            for sample in range(answers)
            for document, content in zip(documents, contents, strict=True)
        ]


def _parse(name: str, instruction: str) -> list[tuple[str, str | None]]:
    """The instruction as pieces of text, each with the name of what follows it."""
    parts: list[tuple[str, str | None]] = []
    text, end = "", 0
    for match in _PLACES.finditer(instruction):
        text += instruction[end : match.start()]
        end = match.end()
        if match[1] is None:
            text += match[0][0]
        else:
            parts.append((text, match[1]))
            text = ""
    parts.append((text + instruction[end:], None))
    times = [place for _, place in parts].count("document")
    if times != 1:
        raise UserError(
            f"{name} holds the document {times} times: write {{document}} in it exactly once, in single braces"
        )
    return parts

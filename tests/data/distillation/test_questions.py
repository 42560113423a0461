"""A document's messages, and the key that its answer is kept under."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlx_sumrl.config import DistillConfig
from mlx_sumrl.data.distillation.documents import Document
from mlx_sumrl.data.distillation.questions import Instructions, Question, identity
from mlx_sumrl.errors import UserError


def config(**changes: Any) -> DistillConfig:
    options = {"out": Path("out"), "teacher": "http://h", "model": "m", "source": ["a.jsonl"]}
    return DistillConfig.model_validate({**options, **changes})


def document(text: str, order: int = 0, language: str | None = None, **fields: Any) -> Document:
    return Document(f"d{order}", "a.jsonl", f"a.jsonl:{order + 1}", text, language, fields, order)


def test_messages() -> None:
    """What comes from data is never read as a placeholder."""
    instructions = Instructions(
        config(instruction="{{x}} {title}: {document}!", system="Be brief {document}.")
    )
    assert instructions.columns == ["title"]
    assert instructions.messages(Question("k", document("{title} {document} {{", title="{document}"), 0)) == [
        {"role": "system", "content": "Be brief {document}."},
        {"role": "user", "content": "{x} {document}: {title} {document} {{!"},
    ]


def test_an_instruction_for_each_language() -> None:
    instructions = Instructions(
        config(instruction="Short: {document}", instructions={"de": "Kurz: {document}"})
    )

    def turn(language: str | None) -> str:
        return instructions.messages(Question("k", document("x", language=language), 0))[-1]["content"]

    assert [turn(one) for one in ("de", "en", None)] == ["Kurz: x", "Short: x", "Short: x"]


def test_keys() -> None:
    instructions = Instructions(config(temperature=1))
    documents = [document("a", 0), document("b", 1)]
    questions = instructions.questions(documents, 3)
    assert len({one.key for one in questions}) == 6
    assert [(one.document.text, one.sample) for one in questions[:3]] == [("a", 0), ("b", 0), ("a", 1)]
    # Neither the place of a row nor how many answers are wanted is in the key.
    again = instructions.questions([document("b", 7), document("a", 9)], 1)
    assert {one.key for one in again} == {one.key for one in questions if one.sample == 0}


def test_the_document_once() -> None:
    with pytest.raises(UserError, match=r"instructions\.de holds the document 2 times"):
        Instructions(config(instructions={"de": "{document} {document}"}))
    with pytest.raises(UserError, match="instruction holds the document 0 times"):
        Instructions(config(instruction="{{document}}"))


def test_identity_is_what_is_asked() -> None:
    changed = {
        "temperature": 0.5,
        "max_tokens": 9,
        "system": "s",
        "top_p": 0.5,
        "extra": {"a": 1},
        "model": "n",
    }
    for name, value in changed.items():
        assert identity(config(**{name: value})) != identity(config())
    same = {"teacher": "http://other", "concurrency": 3, "rows": 5, "max_total_tokens": 7, "seed": 3}
    assert identity(config(**same)) == identity(config())

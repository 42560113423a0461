"""Completions and groups made by hand; real rows of data where the checkout has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_sumrl.data.example import Example
from mlx_sumrl.rollouts.types import Completion, FinishReason, Group


def _completion(length: int = 0, finish_reason: FinishReason = "stop", text: str = "") -> Completion:
    """``length`` tokens, and a stop token 0 after them when it stopped."""
    ids = tuple(range(1, length + 1)) + ((0,) if finish_reason == "stop" else ())
    return Completion(ids, (-1.0,) * len(ids), finish_reason, 0, text)


def _group(
    *completions: Completion,
    reference: str = "",
    prompt: str = "prompt",
    target: int | None = None,
    **fields: Any,
) -> Group:
    return Group(Example("row", (1, 2), prompt, "document", reference, fields, target=target), completions)


@pytest.fixture
def completion() -> Callable[..., Completion]:
    return _completion


@pytest.fixture
def group() -> Callable[..., Group]:
    return _group


def _rows(name: str, count: int) -> list[dict[str, str]]:
    path = Path(__file__).parents[2].parent / "shared" / "data" / name
    if not path.is_file():
        pytest.skip(f"needs {name} in the shared data folder beside the checkout")
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for _, line in zip(range(count), lines, strict=False)]


@pytest.fixture(scope="session")
def dialogues() -> list[dict[str, str]]:
    """40 English rows: id, dialogue, summary."""
    return _rows("dialogsum.validation.jsonl", 40)


@pytest.fixture(scope="session")
def chinese() -> list[dict[str, str]]:
    """20 Chinese rows: document, summary."""
    return _rows("lcsts.sample.jsonl", 20)

"""Completions and groups made by hand, WordNet and real rows where the checkout has them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_sumrl.data.example import Example
from mlx_sumrl.evaluation.meteor import missing_wordnet
from mlx_sumrl.rollouts.types import Completion, FinishReason, Group


def _answer(
    text: str = "",
    length: int = 0,
    finish_reason: FinishReason = "stop",
    reference: str = "",
    id: str = "row",
) -> Group:
    """A group of one completion of ``length`` tokens, and a stop token 0 after them when it stopped."""
    ids = tuple(range(1, length + 1)) + ((0,) if finish_reason == "stop" else ())
    completion = Completion(ids, (-1.0,) * len(ids), finish_reason, 0, text)
    return Group(Example(id, (1, 2), "prompt", "document", reference), (completion,))


@pytest.fixture
def answer() -> Callable[..., Group]:
    return _answer


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(__file__).parents[2].parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the shared data folder beside the checkout")
    return folder


@pytest.fixture(scope="session")
def dialogues(shared: Path) -> list[dict[str, str]]:
    """20 English rows: id, dialogue, summary."""
    with (shared / "data" / "dialogsum.validation.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line) for _, line in zip(range(20), lines, strict=False)]


@pytest.fixture(scope="session")
def wordnet(shared: Path) -> None:
    """WordNet, found through NLTK_DATA as a user would have it found."""
    before = os.environ.get("NLTK_DATA")
    os.environ["NLTK_DATA"] = str(shared / "nltk_data")
    try:
        assert missing_wordnet() is None
    finally:
        if before is None:
            del os.environ["NLTK_DATA"]
        else:
            os.environ["NLTK_DATA"] = before

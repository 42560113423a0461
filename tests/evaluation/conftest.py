"""Completions and groups made by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mlx_sumrl.data.example import Example
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

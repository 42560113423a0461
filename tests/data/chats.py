"""Conversations of a test, loaded as supervised examples."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from mlx_sumrl.config import DataConfig, MaskingConfig
from mlx_sumrl.data.sources import Row, Rows
from mlx_sumrl.data.supervised import LoadedSupervised, load_supervised
from mlx_sumrl.data.supervised_example import SupervisedExample

DATA = DataConfig(max_unusable_share=1)


def conversation(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """A system prompt if there is one, then user and assistant by turns."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return messages + [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


def load(tokenizer: Any, *conversations: Any, longest: int = 4000, **masking: Any) -> LoadedSupervised:
    rows = [Row(f"chats.jsonl:{n}", {"messages": one}) for n, one in enumerate(conversations, start=1)]
    return load_supervised(
        Rows("chats.jsonl", rows), DATA, MaskingConfig(**masking), tokenizer, longest, 0, 64
    )


def learned(example: SupervisedExample) -> list[list[int]]:
    """The runs of trained ids."""
    pairs = zip(example.trained, example.answer_ids, strict=True)
    return [[id_ for _, id_ in run] for trained, run in groupby(pairs, key=lambda pair: pair[0]) if trained]

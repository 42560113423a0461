"""Shared data and tokenizers; tests that need a file of ../shared are skipped where it is absent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from .made_tokenizers import CHATML, byte_tokenizer, control, metaspace_tokenizer


@pytest.fixture(scope="session")
def summarizer(shared: Path) -> Any:
    """A ChatML tokenizer with byte-level BPE."""
    return AutoTokenizer.from_pretrained(str(shared / "models" / "summarizer-5m"))


@pytest.fixture(scope="session")
def stories(shared: Path) -> Any:
    """A Llama tokenizer: byte fallback, a BOS token, no chat template."""
    return AutoTokenizer.from_pretrained(str(shared / "models" / "stories260K"))


@pytest.fixture(scope="session")
def shared_rows(shared: Path) -> Callable[[str, int], list[dict[str, Any]]]:
    def read(name: str, count: int) -> list[dict[str, Any]]:
        with (shared / "data" / name).open(encoding="utf-8") as lines:
            return [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]

    return read


@pytest.fixture(scope="session")
def chatml() -> Any:
    """A ChatML tokenizer that needs no files."""
    return byte_tokenizer(
        control("<|im_start|>"),
        control("<|im_end|>"),
        control("<think>", special=False),
        chat_template=CHATML,
    )


@pytest.fixture(scope="session")
def metaspace() -> Any:
    """A sentencepiece-like tokenizer (spaces as U+2581, a prefix space, bytes for rare characters)."""
    return metaspace_tokenizer()

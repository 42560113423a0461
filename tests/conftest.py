"""For all tests: in CI, property tests look at the same cases every time; real rows, models and WordNet where the
checkout has them beside it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from mlx_sumrl.metrics.meteor import missing_wordnet

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell lets jobs in the background ignore Ctrl-C, and so would every program that a test starts and stops by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture
def exact_buffers() -> Iterator[None]:
    """For what is measured in bytes: a buffer of MLX's that is used again may be larger than what lies in it, and
    counts whole. Here each is made anew."""
    import mlx_sumrl  # isort: skip  # noqa: F401  (its BLAS comes before MLX)
    import mlx.core as mx

    limit = mx.set_cache_limit(0)
    yield
    mx.set_cache_limit(limit)


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(__file__).parents[2] / "shared"
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

"""Recipes as programs in this process, a tiny model for them, and rows to train it on."""

from __future__ import annotations

import io
import json
import runpy
import sys
from pathlib import Path

import pytest

import mlx_sumrl  # noqa: F401  (before mlx: it loads a fast BLAS)
from mlx_sumrl.config import TinyModelConfig
from mlx_sumrl.data.grammar import make_posts
from mlx_sumrl.policy.tiny import make_tiny_model
from mlx_sumrl.training import stages

from .programs import LACKING, Ended, Program


@pytest.fixture(scope="session")
def posts() -> list[dict[str, str]]:
    """40 posts from the grammar: id, document, summary."""
    return make_posts(40, 1, seed=0)[0]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, posts: list[dict[str, str]]) -> Path:
    """A model folder; not to be changed."""
    options = TinyModelConfig(vocabulary=320, hidden_size=32, layers=2, heads=2, context=128)
    return make_tiny_model(
        tmp_path_factory.mktemp("models") / "tiny", options, [post["document"] for post in posts], 0
    )


@pytest.fixture
def posts_file(tmp_path: Path, posts: list[dict[str, str]]) -> Path:
    path = tmp_path / "posts.jsonl"
    path.write_text("".join(json.dumps(post) + "\n" for post in posts[:12]), encoding="utf-8")
    return path


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Program:
    """``python -m recipes.NAME`` without the seconds that a process takes to start; seen from tmp_path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")  # not those of whichever terminal tests run in

    def run(recipe: str, *argv: str, stdin: str | io.StringIO | None = None) -> Ended:
        monkeypatch.setattr(sys, "argv", [recipe, *argv])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin) if isinstance(stdin, str | None) else stdin)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(f"recipes.{recipe}", run_name="__main__", alter_sys=True)
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, said.out, said.err)

    return run


@pytest.fixture
def no_wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may have loaded it, so it cannot just be hidden."""
    monkeypatch.setattr(stages, "wordnet_is_there", lambda: False)
    monkeypatch.setattr(stages, "wordnet_problem", lambda: LACKING)

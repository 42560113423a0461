"""Programs that run side by side share the cores, unless whoever starts the study has said how."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from recipes.kept_program import KeptProgram
from recipes.study_work import threads_of

THREADS = "OPENBLAS_NUM_THREADS"


@pytest.mark.parametrize(("cores", "at_once", "each"), [(8, 2, "4"), (8, 3, "2"), (2, 2, "1"), (2, 5, "1")])
def test_each_has_its_share(cores: int, at_once: int, each: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert threads_of(at_once) == {THREADS: each}
    assert threads_of(1) == {}


@pytest.mark.parametrize(("own", "seen"), [(None, "3"), ("7", "7")])
def test_a_program_has_what_its_starter_did_not_set(
    own: str | None, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(THREADS, raising=False)
    if own is not None:
        monkeypatch.setenv(THREADS, own)
    (tmp_path / "says_threads.py").write_text(f"import os\nprint('threads', os.environ['{THREADS}'])\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    program = KeptProgram(["says_threads"], tmp_path / "log", {THREADS: "3"})
    try:
        for _ in range(300):
            if program.poll() is not None:
                break
            time.sleep(0.05)
        assert program.poll() == 0, program.last_words()
    finally:
        program.end()
    assert program.last_words() == f"threads {seen}"

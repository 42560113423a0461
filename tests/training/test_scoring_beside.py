"""Training with rewards in worker processes: the same run as without them, and no process left however it ends."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.recipes.jobs import Job
from tests.recipes.programs import SHARED, start, tiny_job, write_options

PAID = [
    {"kind": "length"},
    {"kind": "meteor"},
    {"kind": "chrf", "gate": {"reward": "within"}},
    {"kind": "within"},
]
CLOCKS = ("time/", "memory/", "tokens_per_second")


def stage(rewards: list[dict[str, Any]]) -> dict[str, Any]:
    return {"stages": [{"name": "only", "steps": 3, "rewards": rewards}]}


@pytest.fixture
def nltk_data(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NLTK_DATA", str(SHARED / "nltk_data"))


@pytest.mark.usefixtures("nltk_data")
def test_the_same_run_bit_for_bit(tmp_path: Path) -> None:
    rows = []
    for processes in (0, 2):
        (tmp_path / str(processes)).mkdir()
        job = Job(tmp_path / str(processes), {**stage(PAID), "scoring": {"processes": processes}})
        found = job.train()
        assert all(0 < row["time/score"] < row["time/step"] for row in found)
        assert {f"reward/{one['kind']}" for one in PAID} <= found[0].keys()
        rows.append(
            [{key: value for key, value in row.items() if not key.startswith(CLOCKS)} for row in found]
        )
    assert rows[0] == rows[1]
    assert rows[0][-1]["grad_norm"] > 0


def pool_of(pid: int) -> list[psutil.Process]:
    """Its worker processes; other children come and go while one looks."""
    found = []
    for one in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie, too
            if "scoring_process" in " ".join(one.cmdline()):
                found.append(one)
    return found


def is_there(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.usefixtures("nltk_data")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL, None])
def test_however_a_run_ends_no_process_is_left(ending: signal.Signals | None, tmp_path: Path) -> None:
    options = tiny_job({**stage(PAID), "sft": None, "scoring": {"processes": 2}})
    options["stages"][0]["steps"] = 5 if ending is None else 5000
    program = start("grpo_staged", "--config", write_options(tmp_path, options), folder=tmp_path)
    metrics = tmp_path / "runs" / "job" / "metrics.jsonl"
    workers: list[psutil.Process] = []
    end = time.monotonic() + 90
    while program.poll() is None and time.monotonic() < end:
        workers = pool_of(program.pid) or workers
        if workers and metrics.exists() and metrics.read_text().count("\n") >= 2:
            break
        time.sleep(0.02)
    assert len(workers) == 2
    if ending is not None:
        program.send_signal(ending)
    said, _ = program.communicate(timeout=90)
    assert program.returncode == {signal.SIGINT: 130, signal.SIGKILL: -9, None: 0}[ending], said
    assert "Traceback" not in said
    gone = time.monotonic() + 10
    while any(map(is_there, workers)) and time.monotonic() < gone:
        time.sleep(0.02)
    assert not any(map(is_there, workers))
    assert all(json.loads(line)["time/score"] > 0 for line in metrics.read_text().splitlines())

"""Distillation killed, interrupted and out of room, then gone on with: nothing on disk is asked for again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.data.distillation.simulated_teacher import SimulatedTeacher

from .distilling import answers_on_disk, document, options, read, source, spent_at_most
from .programs import ROOT, Program, start


class Killer:
    """Kills the recipe's process at the n-th event of a kind since it was started."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.kind, self.after = "", 0
        self.armed = threading.Event()
        self.lock = threading.Lock()

    def __call__(self, kind: str, number: int) -> None:
        self.armed.wait()
        with self.lock:
            if kind != self.kind or self.process is None:
                return
            self.after -= 1
            if self.after == 0:
                self.process.send_signal(signal.SIGKILL)

    def start(self, kind: str, after: int, folder: Path, argv: list[str]) -> subprocess.Popen[str]:
        with self.lock:
            self.armed.clear()
            self.kind, self.after = kind, after
            self.process = start("distill", *argv, folder=folder)
            self.armed.set()
        return self.process


MOMENTS = [
    *(("request", 1), ("delivered", 1), ("half", 2), ("request", 6), ("delivered", 5), ("delivered", 9)),
    *(("half", 7), ("request", 8), ("delivered", 4), ("half", 1)),
]
CONCURRENCY = 4


@pytest.mark.slow
def test_killed_at_ten_moments(tmp_path: Path) -> None:
    """No answer on disk is ever asked for again, each row is there once, and the ledger never says too little."""
    source(tmp_path, 70)
    ledger = tmp_path / "out" / "ledger.jsonl"
    killer = Killer()
    with SimulatedTeacher() as teacher:
        teacher.event = killer
        argv = options(teacher, tmp_path, "--concurrency", str(CONCURRENCY), "--max_total_tokens", "100000")
        again = 0
        for kind, after in MOMENTS:
            kept = answers_on_disk(ledger)
            requests, delivered = len(teacher.documents), teacher.delivered.copy()
            process = killer.start(kind, after, tmp_path, argv)
            said, _ = process.communicate(timeout=60)
            assert process.returncode == -signal.SIGKILL, said
            assert not set(kept) & set(teacher.documents[requests:])
            now = answers_on_disk(ledger)
            assert now[: len(kept)] == kept
            arrived = [one for one, count in (teacher.delivered - delivered).items() if one not in now]
            assert len(arrived) <= CONCURRENCY
            again += len(arrived)
            assert teacher.billed.total() <= spent_at_most(ledger) <= 100000
        kept = answers_on_disk(ledger)
        assert len(kept) > 20
        process = killer.start("never", 1, tmp_path, argv)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
        rows = read(tmp_path / "out" / "train.jsonl")
        assert sorted(row["document"] for row in rows) == [document(n) for n in range(70)]
        assert teacher.delivered.total() == 70 + again
        print(f"{again} answers had arrived and were not on disk at {len(MOMENTS)} kills")


def test_ctrl_c_keeps_what_is_under_way(program: Program, tmp_path: Path) -> None:
    source(tmp_path, 40)
    process: subprocess.Popen[str] | None = None
    ready = threading.Event()

    def interrupt(kind: str, number: int) -> None:
        ready.wait()
        if (kind, number) == ("request", 9):
            assert process is not None
            process.send_signal(signal.SIGINT)

    with SimulatedTeacher() as teacher:
        teacher.event = interrupt
        argv = options(teacher, tmp_path, "--concurrency", "3")
        process = start("distill", *argv, folder=tmp_path)
        ready.set()
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert "the same command goes on from here" in said
        asked = len(teacher.documents)
        assert 9 <= asked < 40
        rows = read(tmp_path / "out" / "train.jsonl")
        assert len(rows) == teacher.delivered.total() == asked
        assert program("distill", *argv).code == 0
        assert teacher.delivered == {document(n): 1 for n in range(40)}


def test_ctrl_c_twice_waits_for_nobody(tmp_path: Path) -> None:
    source(tmp_path, 40)
    with SimulatedTeacher(lambda number, text: "hang" if number > 5 else "answer") as teacher:
        hanging = threading.Semaphore(0)
        teacher.event = lambda kind, number: hanging.release() if number > 5 else None
        argv = options(teacher, tmp_path, "--concurrency", "2", "--timeout_s", "300")
        process = start("distill", *argv, folder=tmp_path)
        assert process.stdout is not None
        hanging.acquire()
        hanging.acquire()
        process.send_signal(signal.SIGINT)
        assert any(line.startswith("stopping: ") for line in process.stdout)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "the same command goes on" in said
        assert "Traceback" not in said
        assert len(answers_on_disk(tmp_path / "out" / "ledger.jsonl")) == 5
        assert teacher.billed.total() <= spent_at_most(tmp_path / "out" / "ledger.jsonl")


def test_a_full_disk_loses_no_answer_that_was_on_it(program: Program, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    source(tmp_path, 20)
    ledger = tmp_path / "out" / "ledger.jsonl"
    with SimulatedTeacher() as teacher:
        argv = options(teacher, tmp_path, "--concurrency", "3")
        command = f'ulimit -f 8; exec {sys.executable} -m recipes.distill "$@"'
        ended = subprocess.run(
            ["bash", "-c", command, "distill", *argv],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 2, ended
        assert (
            "cannot be written (File too large): make room, then run the same command again" in ended.stderr
        )
        kept = answers_on_disk(ledger)
        asked = len(teacher.documents)
        assert 0 < len(kept) <= asked < 20
        assert program("distill", *argv).code == 0
        assert not set(kept) & set(teacher.documents[asked:])
    assert len(read(tmp_path / "out" / "train.jsonl")) == 20

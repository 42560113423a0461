"""Distillation killed, interrupted and out of room, then gone on with: nothing on disk is asked for again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tests.endpoint.simulated_teacher import SimulatedTeacher

from .distilling import answers_on_disk, document, options, read, source, spent_at_most
from .killing import Killer
from .programs import ROOT, Program, start

MOMENTS = [
    *(("request", 1), ("delivered", 1), ("half", 2), ("request", 6), ("delivered", 5), ("delivered", 9)),
    *(("half", 7), ("request", 8), ("delivered", 4), ("half", 1)),
]
CONCURRENCY = 4


def test_killed_at_ten_moments(tmp_path: Path) -> None:
    """No answer on disk is ever asked for again, each row is there once, and the ledger never says too little."""
    source(tmp_path, 70)
    ledger = tmp_path / "out" / "ledger.jsonl"
    killer = Killer(tmp_path, "distill")
    with SimulatedTeacher() as teacher, contextlib.closing(killer):
        teacher.event = killer
        argv = options(teacher, tmp_path, "--concurrency", str(CONCURRENCY), "--max_total_tokens", "100000")
        again = 0
        for kind, after in MOMENTS:
            kept = answers_on_disk(ledger)
            requests, delivered = len(teacher.documents), teacher.delivered.copy()
            assert killer.run(kind, after, argv) == -signal.SIGKILL
            teacher.wait_until_idle()
            assert not set(kept) & set(teacher.documents[requests:])
            now = answers_on_disk(ledger)
            assert now[: len(kept)] == kept
            arrived = [one for one, count in (teacher.delivered - delivered).items() if one not in now]
            assert len(arrived) <= CONCURRENCY
            again += len(arrived)
            assert teacher.billed.total() <= spent_at_most(ledger) <= 100000
        # Of nine delivered at one moment and five at another, at most four each were not on disk yet.
        assert len(answers_on_disk(ledger)) >= 6
        assert killer.run("never", 1, argv) == 0
        rows = read(tmp_path / "out" / "train.jsonl")
        assert sorted(row["document"] for row in rows) == [document(n) for n in range(70)]
        assert teacher.delivered.total() == 70 + again
        print(f"{again} answers had arrived and were not on disk at {len(MOMENTS)} kills")


def test_the_cap_holds_across_kills(tmp_path: Path) -> None:
    """What was under way at each kill is gone, but not forgotten: it counts at its worst case."""
    source(tmp_path, 320)
    killer = Killer(tmp_path, "distill")
    with SimulatedTeacher() as teacher, contextlib.closing(killer):
        teacher.event = killer
        cap = ("--max_total_tokens", "20000", "--max_tokens", "40", "--concurrency", str(CONCURRENCY))
        argv = options(teacher, tmp_path, *cap)
        for kind, after in MOMENTS[:5]:
            assert killer.run(kind, after, argv) == -signal.SIGKILL
            teacher.wait_until_idle()
        assert killer.run("never", 1, argv) == 0
        assert "max_total_tokens 20,000 is reached" in (tmp_path / "said.txt").read_text()
        assert 0 < teacher.billed.total() <= spent_at_most(tmp_path / "out" / "ledger.jsonl") <= 20000
        requests = len(teacher.documents)
        assert requests < 320
        assert killer.run("never", 1, argv) == 0
        assert len(teacher.documents) == requests


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

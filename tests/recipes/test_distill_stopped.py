"""Distillation killed, interrupted and out of room, then gone on with: nothing on disk is asked for again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tests.endpoint.simulated_teacher import SimulatedTeacher

from .distilling import answers_on_disk, document, options, read, source, spent_at_most
from .programs import ROOT, Program, start

FORKED = """
import json, os, sys
from mlx_sumrl.options.command_line import exit_code_of
from recipes.distill import main
for line in sys.stdin:
    process = os.fork()
    if process == 0:
        os.dup2(os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        code = exit_code_of(lambda: main(json.loads(line)))
        sys.stdout.flush()
        os._exit(code)
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


class Killer:
    """Runs the recipe in a process of its own, and kills that at the n-th event of a kind.

    Each process is a fork of one that has imported everything, which saves the second that imports take.
    """

    def __init__(self, folder: Path) -> None:
        self.process = 0
        self.kind, self.after = "", 0
        self.armed = threading.Event()
        self.lock = threading.Lock()
        self.parent = subprocess.Popen(
            [sys.executable, "-c", FORKED],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, kind: str, number: int) -> None:
        self.armed.wait()
        with self.lock:
            if kind != self.kind:
                return
            self.after -= 1
            if self.after == 0:
                os.kill(self.process, signal.SIGKILL)

    def run(self, kind: str, after: int, argv: list[str]) -> int:
        """The exit code."""
        assert self.parent.stdin is not None
        assert self.parent.stdout is not None
        self.armed.clear()
        self.parent.stdin.write(json.dumps(argv) + "\n")
        self.parent.stdin.flush()
        self.process, self.kind, self.after = int(self.parent.stdout.readline()), kind, after
        self.armed.set()
        return int(self.parent.stdout.readline())

    def close(self) -> None:
        self.parent.communicate(timeout=60)


MOMENTS = [
    *(("request", 1), ("delivered", 1), ("half", 2), ("request", 6), ("delivered", 5), ("delivered", 9)),
    *(("half", 7), ("request", 8), ("delivered", 4), ("half", 1)),
]
CONCURRENCY = 4


def test_killed_at_ten_moments(tmp_path: Path) -> None:
    """No answer on disk is ever asked for again, each row is there once, and the ledger never says too little."""
    source(tmp_path, 70)
    ledger = tmp_path / "out" / "ledger.jsonl"
    killer = Killer(tmp_path)
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
    killer = Killer(tmp_path)
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

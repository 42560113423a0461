"""Judging killed and interrupted, then gone on with: no reply on disk is asked for again."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
from collections import Counter
from pathlib import Path

from tests.judging.made import criterion_of, judge_server

from .judging import by_criterion, evaluation, ledger_lines, options, read
from .killing import Killer
from .programs import Program, start

MOMENTS = [
    ("request", 1),
    ("delivered", 1),
    ("half", 2),
    ("request", 9),
    ("delivered", 7),
    ("half", 5),
    ("request", 12),
]
CONCURRENCY = 4


def test_killed_and_gone_on_with(tmp_path: Path) -> None:
    """No reply on disk is asked for again, malformed ones included; the end is that of a run without a kill."""
    evaluation(tmp_path / "result.json", 16)

    def script(number: int, prompt: str) -> str:
        """Row 3's clarity comes right when it is asked again; row 5's coverage never does."""
        wrong = (
            "Bridge 3 " in prompt and criterion_of(prompt) == "clarity" and "An earlier reply" not in prompt
        )
        wrong = wrong or ("Bridge 5 " in prompt and criterion_of(prompt) == "coverage")
        return "says Good!" if wrong else by_criterion(number, prompt)

    killer = Killer(tmp_path, "judge")
    ledger = tmp_path / "judged" / "ledger.jsonl"
    with judge_server(script) as server, contextlib.closing(killer):
        server.event = killer
        argv = options(server, "--concurrency", str(CONCURRENCY), "--max_total_tokens", "1000000")
        again = 0
        for kind, after in MOMENTS:
            kept = [one["key"] for one in ledger_lines(ledger, "answer")]
            asked, delivered = len(server.documents), server.delivered.copy()
            assert killer.run(kind, after, argv) == -signal.SIGKILL
            server.wait_until_idle()
            now = [one["key"] for one in ledger_lines(ledger, "answer")]
            assert now[: len(kept)] == kept
            arrived = (server.delivered - delivered).total() - (len(now) - len(kept))
            assert 0 <= arrived <= CONCURRENCY
            again += arrived
            assert max(Counter(server.documents[asked:]).values()) == 1
        assert killer.run("never", 1, argv) == 0
        # 16 rows x 4, one asked twice, one three times; and what had arrived and was not on disk at a kill.
        assert server.delivered.total() == 64 + 1 + 2 + again
        assert len(ledger_lines(ledger, "answer")) == 67
        resumed = read(tmp_path / "judged" / "judged.json")
        requests = len(server.documents)
        assert killer.run("never", 1, argv) == 0
        assert len(server.documents) == requests
        assert killer.run("never", 1, [*argv, "--out", "whole"]) == 0
        whole = read(tmp_path / "whole" / "judged.json")
    assert resumed["evaluations"] == whole["evaluations"]
    assert resumed["malformed_replies"] == whole["malformed_replies"] == 4
    assert whole["evaluations"]["result"]["summary"]["unscored"] == {"malformed reply": 1}
    assert resumed["cost"]["at_most"] >= whole["cost"]["at_most"]


def test_ctrl_c_keeps_what_is_under_way(program: Program, tmp_path: Path) -> None:
    evaluation(tmp_path / "result.json", 10)
    process: subprocess.Popen[str] | None = None
    ready = threading.Event()

    def interrupt(kind: str, number: int) -> None:
        ready.wait()
        if (kind, number) == ("request", 9):
            assert process is not None
            process.send_signal(signal.SIGINT)

    with judge_server(by_criterion) as server:
        server.event = interrupt
        argv = options(server, "--concurrency", "3")
        process = start("judge", *argv, folder=tmp_path)
        ready.set()
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert "questions left open: it was interrupted; the same command goes on from here" in said
        asked = len(server.documents)
        assert 9 <= asked < 40
        found = read(tmp_path / "judged" / "judged.json")
        assert (found["complete"], found["stopped"]) == (False, "it was interrupted")
        assert found["evaluations"]["result"]["summary"]["unscored"] == {
            "not asked: it was interrupted": 40 - asked
        }
        assert program("judge", *argv).code == 0
        assert set(server.delivered.values()) == {1}
        assert len(server.delivered) == 40

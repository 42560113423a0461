"""An engine's process and its log, with real processes; and an engine that is there but answers no more."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from cluster.engine_log import FILES, EngineLog
from cluster.engine_process import EngineProcess
from cluster.engines import base
from cluster.engines.base import EngineOptions
from cluster.engines.vllm import Vllm
from cluster.supervision import Pace, Supervision
from tests.cluster.running_worker import (
    PATIENCE_S,
    alive,
    until,
    write_simulated_model,
    write_simulated_vllm,
)

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(1000)"])
print("child", child.pid, flush=True)
time.sleep(1000)
"""


def log_in(folder: Path) -> EngineLog:
    return EngineLog(folder / "engine.log")


def test_an_end_is_told_with_its_code_and_its_words(tmp_path: Path) -> None:
    async def scene() -> int:
        program = (
            "import sys; print('to stdout'); print('error: no such model', file=sys.stderr); sys.exit(7)"
        )
        process = await EngineProcess.start([sys.executable, "-c", program], {}, log)
        return await asyncio.wait_for(process.ended(), PATIENCE_S)

    log = log_in(tmp_path)
    assert asyncio.run(scene()) == 7
    assert log.last_words() == "error: no such model"
    assert "to stdout" in (tmp_path / "engine.log").read_text()


def test_what_is_added_to_the_environment_is_there(tmp_path: Path) -> None:
    async def scene() -> int:
        program = "import os, sys; sys.exit(int(os.environ['CODE']))"
        process = await EngineProcess.start([sys.executable, "-c", program], {"CODE": "5"}, log_in(tmp_path))
        return await asyncio.wait_for(process.ended(), PATIENCE_S)

    assert asyncio.run(scene()) == 5


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    async def scene() -> None:
        await EngineProcess.start(["/nowhere/vllm"], {}, log_in(tmp_path))

    with pytest.raises(OSError, match="/nowhere/vllm cannot be started"):
        asyncio.run(scene())


def test_one_that_does_not_want_to_end_is_killed_with_its_children(tmp_path: Path) -> None:
    async def scene() -> tuple[int, int]:
        command = [sys.executable, "-S", "-c", STUBBORN]
        process = await EngineProcess.start(command, {}, log_in(tmp_path), grace_s=0.2)
        path = tmp_path / "engine.log"
        await asyncio.to_thread(until, lambda: "child" in path.read_text(), "the child")
        child = int(path.read_text().split()[1])
        assert alive(child)
        assert alive(process.pid)
        await process.stop()
        assert not process.running
        return process.pid, child

    pid, child = asyncio.run(scene())
    until(lambda: not alive(pid) and not alive(child), "the end of both")


def test_the_log_is_kept_within_bounds_and_the_newest_is_there(tmp_path: Path) -> None:
    log = EngineLog(tmp_path / "engine.log", longest=1000)
    for number in range(1000):
        log.write(f"line {number:06d}\n".encode())
    log.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["engine.log", *(f"engine.log.{number}" for number in range(1, FILES + 1))]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    text = "".join((tmp_path / name).read_text() for name in reversed(files))
    kept = [int(line.split()[1]) for line in text.splitlines()]
    assert kept == list(range(kept[0], 1000))
    assert len(kept) > 200


def test_an_engine_that_answers_no_more_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "PROBE_S", 0.3)
    monkeypatch.setenv("SIMULATED_FOLDER", str(tmp_path))
    model = write_simulated_model(tmp_path / "model")
    engine = Vllm(EngineOptions(model), str(write_simulated_vllm(tmp_path)))
    pace = Pace(look_s=0.05, misses=2)

    async def ready(supervision: Supervision, restarts: int) -> int:
        while supervision.state != "ready" or supervision.restarts < restarts:
            await asyncio.sleep(0.02)
        assert supervision.process is not None
        return supervision.process.pid

    async def scene() -> tuple[int, int]:
        supervision = Supervision(engine, log_in(tmp_path), pace, grace_s=0.2)
        running = asyncio.create_task(supervision.run())
        first = await asyncio.wait_for(ready(supervision, 0), PATIENCE_S)
        os.kill(first, signal.SIGSTOP)
        second = await asyncio.wait_for(ready(supervision, 1), PATIENCE_S)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return first, second

    first, second = asyncio.run(scene())
    assert first != second
    until(lambda: not alive(first) and not alive(second), "the end of both")

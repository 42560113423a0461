"""A process that dies while it saves, at any moment: whole checkpoints are all that is left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_sumrl.training.checkpoints import TrainState, list_checkpoints, save_checkpoint
from tests.training.filled import check_filled, filled


class Killed(BaseException):
    """Stands for a process that ends here: no `except Exception` and no ``ignore_errors`` catches it."""


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make the n-th thing from now on that is done to the disk the last one, half done where it can be."""
    count, last = 0, 0

    def counted(original: Callable[..., Any], half: Callable[..., None] | None = None) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if last and count == last:
                if half is not None:
                    half(*args)
                raise Killed
            return original(*args, **kwargs)

        return call

    def half_file(file: str, *_: Any) -> None:
        Path(file).write_bytes(b"half of it")

    monkeypatch.setattr(mx, "save_safetensors", counted(mx.save_safetensors, half_file))
    monkeypatch.setattr(Path, "write_text", counted(Path.write_text, half_file))
    for name in ("replace", "unlink", "rmdir", "mkdir", "fsync"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))

    def start(n: int) -> None:
        nonlocal count, last
        count, last = 0, n

    return start


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("keep", [1, 2])
def test_a_death_at_every_single_step_of_saving(
    keep: int, again: bool, tmp_path: Path, killed_at: Callable[[int], None]
) -> None:
    """Steps 1 and 2 are there; the process dies while it saves 3, or 2 again, after each operation in turn."""
    saved = 2 if again else 3
    for n in range(1, 100):
        folder = tmp_path / str(n)
        killed_at(0)
        for number in (1, 2):
            save_checkpoint(folder, TrainState(step=number), *filled(number), keep=2)
        killed_at(n)
        try:
            save_checkpoint(folder, TrainState(step=saved), *filled(saved), keep=keep)
            died = False
        except Killed:
            died = True
        killed_at(0)
        steps = [check_filled(path) for path in list_checkpoints(folder)]
        assert max(steps) >= (1 if again else 2)
        # And a new process goes on as if nothing had happened.
        save_checkpoint(folder, TrainState(step=4), *filled(4), keep=keep)
        steps = [check_filled(path) for path in list_checkpoints(folder)]
        assert steps[-1] == 4
        assert len(steps) <= keep
        assert {path.name for path in folder.iterdir()} == {f"step-{number:06d}" for number in steps}
        if not died:
            break
    assert n > 12  # it died that often
    assert not died


SAVE_FOREVER = """
import os, sys
from pathlib import Path
from mlx_sumrl.training.checkpoints import TrainState, list_checkpoints, save_checkpoint
from tests.training.filled import check_filled, filled

folder = Path(sys.argv[1])

def save_forever():
    there = list_checkpoints(folder)
    step = check_filled(there[-1], 300) if there else 0
    while True:
        step += 1
        for _ in range(1 + (step % 3 == 0)):  # every third step twice
            save_checkpoint(folder, TrainState(step=step), *filled(float(step), 300), keep=2)
        print(step, flush=True)

for _ in sys.stdin:
    # Loading Python takes longer than all the rest. Nothing of MLX has run before the fork.
    process = os.fork() if sys.platform == "linux" else 0
    if process == 0:
        print(os.getpid(), flush=True)
        save_forever()
    os.waitpid(process, 0)
    print("dead", flush=True)
"""


def test_killed_processes_leave_only_whole_checkpoints(tmp_path: Path) -> None:
    """Twenty processes that do nothing but save are killed one after the other, at random moments."""
    folder = tmp_path / "checkpoints"
    moments = random.Random(0)

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SAVE_FOREVER, str(folder)]
        root = Path(__file__).parents[2]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)

    newest, leftovers = 0, 0
    parent = start()
    try:
        for _ in range(20):
            assert parent.stdin is not None
            assert parent.stdout is not None
            parent.stdin.write("go\n")
            parent.stdin.flush()
            process = int(parent.stdout.readline())
            announced = int(parent.stdout.readline())
            assert announced == newest + 1  # it went on where the one before it was killed
            time.sleep(moments.uniform(0, 0.08))
            os.kill(process, signal.SIGKILL)
            for line in parent.stdout:
                if line == "dead\n":
                    break
                announced = int(line)
            else:  # no fork here: the process was the parent itself
                parent.wait()
                parent = start()
            leftovers += any(path.name.startswith(".unfinished") for path in folder.iterdir())
            steps = [check_filled(path, 300) for path in list_checkpoints(folder)]
            assert 1 <= len(steps) <= 3
            newest = max(steps)
            assert newest >= announced  # what was announced is there
    finally:
        parent.kill()
        parent.communicate()
    assert leftovers > 0  # some did die in the middle of it

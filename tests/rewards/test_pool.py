"""Worker processes that score: same numbers, and whatever becomes of them, an answer and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import psutil
import pytest

import mlx_sumrl  # noqa: F401  (before mlx: it loads a fast BLAS)

import mlx.core as mx  # isort: skip  # noqa: F401  (the pool starts beside a process that has it)
from mlx_sumrl.data.example import Example
from mlx_sumrl.errors import UserError
from mlx_sumrl.rewards import pool as pool_module
from mlx_sumrl.rewards.pool import ScoringPool
from mlx_sumrl.rollouts.types import Completion, Group

from made_for_the_pool import Obeys, Plain  # isort: skip

NAN = np.nan
LONG = 60.0


def group(*texts: str, row: str = "row") -> Group:
    completions = tuple(Completion((1, 0), (-1.0, -1.0), "stop", 0, text) for text in texts)
    return Group(Example(row, (1, 2), "prompt", "document", "reference"), completions)


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def is_there(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture(scope="module")
def pool() -> Iterator[ScoringPool]:
    pool = ScoringPool(2)
    yield pool
    pool.close()


def test_values_are_in_order_and_no_worker_has_mlx(pool: ScoringPool) -> None:
    futures = [
        pool.submit(group(*(f"say {10 * p + g}" for g in range(3))), [Obeys(), Plain()], [LONG, LONG])
        for p in range(20)
    ]
    for p, future in enumerate(futures):
        column = [10 * p + g for g in range(3)]
        np.testing.assert_array_equal(future.result(LONG).values_GR, np.transpose([column, column]))
    found = [pool.submit(group("mlx 1"), [Obeys()], [LONG]) for _ in range(4)]
    assert [one.result(LONG).values_GR[0, 0] for one in found] == [0.0] * 4
    pids = {
        int(pool.submit(group("pid 0"), [Obeys()], [LONG]).result(LONG).values_GR[0, 0]) for _ in range(4)
    }
    assert pids <= set(pool.pids)
    assert os.getpid() not in pids


@pytest.mark.parametrize("word", ["sleep", "stuck"])
def test_what_is_not_there_in_time_is_missing_and_counted(pool: ScoringPool, word: str) -> None:
    before = set(pool.pids)
    future = pool.submit(group("say 1", f"{word} 2", "say 3"), [Obeys(), Plain()], [0.5, LONG])
    others = [pool.submit(group(f"say {n}"), [Plain()], [LONG]) for n in range(4)]
    assert [one.result(LONG).values_GR[0, 0] for one in others] == [0, 1, 2, 3]  # by the other process
    scores = future.result(LONG)
    np.testing.assert_array_equal(scores.values_GR, [[1, 1], [NAN, 2], [3, 3]])
    np.testing.assert_array_equal(scores.timeouts_R, [1, 0])
    np.testing.assert_array_equal(scores.crashes_R, [0, 0])
    assert len(before - set(pool.pids)) == 1, "the one that was stuck is replaced"
    until(lambda: len(pool.pids) == 2)


def test_a_group_has_one_more_chance_and_no_more(pool: ScoringPool) -> None:
    begun = time.monotonic()
    texts = ["say 1", *["sleep 2"] * 6, "say 3"]
    scores = pool.submit(group(*texts), [Obeys(), Plain()], [0.5, LONG]).result(LONG)
    np.testing.assert_array_equal(scores.values_GR[:, 0], [1, *[NAN] * 7])
    np.testing.assert_array_equal(scores.values_GR[:, 1], [1, *[2] * 6, 3])
    assert scores.timeouts_R.tolist() == [7, 0]
    assert 1.0 < time.monotonic() - begun < 40.0


def test_what_a_dead_process_was_at_is_done_once_more(pool: ScoringPool, tmp_path: Path) -> None:
    rewards = [Obeys(folder=str(tmp_path)), Plain()]
    again = pool.submit(group("say 1", "once 2", "say 3", row="again"), rewards, [LONG, LONG])
    scores = again.result(LONG)
    np.testing.assert_array_equal(scores.values_GR, [[1, 1], [2, 2], [3, 3]])
    assert not scores.crashes_R.any()
    assert [len(list(tmp_path.glob(f"again-{n}-*"))) for n in (1, 2, 3)] == [1, 2, 1], "only what was open"
    dies = pool.submit(group("say 1", "die 2", "say 3", row="dies"), rewards, [LONG, LONG])
    scores = dies.result(LONG)
    np.testing.assert_array_equal(scores.values_GR, [[1, 1], [NAN, 2], [3, 3]])
    np.testing.assert_array_equal(scores.crashes_R, [1, 0])
    assert len(list(tmp_path.glob("dies-2-*"))) == 2


def test_killed_from_outside_nothing_is_lost(pool: ScoringPool) -> None:
    until(lambda: len(pool.pids) == 2)
    futures = [pool.submit(group("slow 1", "slow 2", "slow 3"), [Obeys()], [LONG]) for _ in range(4)]
    time.sleep(0.3)
    for pid in pool.pids:
        os.kill(pid, signal.SIGKILL)
    for future in futures:
        np.testing.assert_array_equal(future.result(LONG).values_GR[:, 0], [1, 2, 3])


def test_what_a_reward_raises_comes_back(pool: ScoringPool) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)reward 'obeys' raised:.*ZeroDivisionError: by hand"):
        pool.submit(group("raise 1"), [Obeys()], [LONG]).result(LONG)
    with pytest.raises(UserError, match=r"^mend it$"):
        pool.submit(group("user 1"), [Obeys()], [LONG]).result(LONG)
    assert pool.submit(group("say 5"), [Obeys()], [LONG]).result(LONG).values_GR == [[5]]


def test_closed_while_busy_no_process_is_left() -> None:
    pool = ScoringPool(2)
    begun = time.monotonic()
    futures = [pool.submit(group("sleep 1"), [Obeys()], [LONG]) for _ in range(3)]
    assert time.monotonic() - begun < 0.5, "submitting does not wait for processes"
    until(lambda: len(pool.pids) == 2)
    pids = pool.pids
    pool.close()
    pool.close()
    assert not any(map(is_there, pids))
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(0)
    with pytest.raises(CancelledError):
        pool.submit(group("say 1"), [Obeys()], [LONG]).result(0)


def test_processes_that_cannot_start_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module.sys, "path", [])
    pool = ScoringPool(1)
    with pytest.raises(UserError, match=r"end before they begin \(exit code \d+\).*scoring.processes to 0"):
        pool.submit(group("say 1"), [Obeys()], [LONG]).result(LONG)
    monkeypatch.undo()
    with pytest.raises(UserError, match="end before they begin"):  # and again, whenever it is asked
        pool.submit(group("say 1"), [Obeys()], [LONG]).result(LONG)
    pool.close()
    with pytest.raises(ValueError, match="0 processes"):
        ScoringPool(0)


PARENT = """
import sys, time
from mlx_sumrl.rewards.pool import ScoringPool
sys.path.insert(0, {folder!r})
from test_pool import group
from made_for_the_pool import Obeys
pool = ScoringPool(3)
pool.submit(group("pid 1"), [Obeys()], [1.0]).result()
pool.submit(group("sleep 1"), [Obeys()], [60.0])
pool.submit(group("stuck 1"), [Obeys()], [2.0])
time.sleep(0.5)
print(*pool.pids, flush=True)
time.sleep(60)
"""


def test_none_outlives_a_parent_that_was_killed() -> None:
    """One that waits, one asleep, and one stuck where only its watchdog can end it."""
    program = PARENT.format(folder=str(Path(__file__).parent))
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(one) for one in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    assert len(pids) == 3
    until(lambda: not any(map(is_there, pids)))

"""Workers in processes that are stopped and killed, and a network that fails: nothing lost, doubled or misaligned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated_worker import Behaviour
from benchmarks.simulated_workers import SimulatedWorkers

from .made import SAMPLING, check_account, check_groups, examples, sampler_for, until
from .proxy import Proxy, Way

ROOT = Path(__file__).parents[2]


class WorkerProcess:
    """One simulated worker, as a process."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.simulated_workers", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    @property
    def port(self) -> str:
        return self.url.rpartition(":")[2]

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def processes(*arguments: tuple[str, ...]) -> Iterator[list[WorkerProcess]]:
    started = [WorkerProcess(*one) for one in arguments]
    try:
        yield started
    finally:
        for one in started:
            one.end()


def test_a_worker_killed_in_the_middle_of_its_requests(tmp_path: Path) -> None:
    with ExitStack() as stack:
        first, second = stack.enter_context(processes(("--latency", "0.3"), ("--latency", "0.05")))
        with sampler_for([first.url, second.url], tmp_path, hedge=False) as sampler:
            sampler.publish(0)
            asked = examples(8)
            sampler.prepare(asked, 2, SAMPLING, seed=0)
            until(lambda: sampler.report()["cluster/w0/in_flight"] == 4)
            first.send(signal.SIGKILL)
            groups = sampler.sample(asked, 2, SAMPLING, seed=0)
            check_groups(groups, asked, 2)
            report = check_account(sampler, 8)
            assert report["cluster/failed"] == 4
            assert report["cluster/duplicates"] == 0
            # Another process takes its place, with nothing; the policy has moved on meanwhile.
            sampler.publish(1)
            until(lambda: sampler.report()["cluster/w0/version"] == -1)
            with processes(("--port", first.port)) as _:
                until(lambda: sampler.report()["cluster/w0/version"] == 1)
                asked = examples(8, first=20)
                check_groups(sampler.sample(asked, 2, SAMPLING, seed=1), asked, 2)
                check_account(sampler, 16)


@pytest.mark.parametrize("hedge", [False, True])
def test_a_stopped_worker_is_gone_and_comes_back(tmp_path: Path, hedge: bool) -> None:
    """SIGSTOP: its connections stay open and nothing comes. Its health is what tells, or a second copy is first."""
    options: dict[str, Any] = {"heartbeat_s": 0.1, "connect_timeout_s": 0.3, "request_timeout_s": 60.0}
    with ExitStack() as stack:
        first, second = stack.enter_context(processes(("--latency", "0.2"), ("--latency", "0.02")))
        with sampler_for([first.url, second.url], tmp_path, hedge=hedge, **options) as sampler:
            sampler.publish(0)
            asked = examples(8)
            sampler.prepare(asked, 2, SAMPLING, seed=0)
            until(lambda: sampler.report()["cluster/w0/in_flight"] == 4)
            first.send(signal.SIGSTOP)
            check_groups(sampler.sample(asked, 2, SAMPLING, seed=0), asked, 2)
            report = check_account(sampler, 8)
            if not hedge:
                assert report["cluster/failed"] == 4
            sampler.publish(1)
            asked = examples(4, first=10)
            check_groups(sampler.sample(asked, 2, SAMPLING, seed=1), asked, 2)
            until(lambda: sampler.report()["cluster/w0/version"] == -1)
            first.send(signal.SIGCONT)
            until(lambda: sampler.report()["cluster/w0/version"] == 1)
            asked = examples(8, first=20)
            check_groups(sampler.sample(asked, 2, SAMPLING, seed=2), asked, 2)
            check_account(sampler, 20)


@pytest.mark.parametrize("way", ["cut", "swallow", "delay"])
def test_a_network_that_fails_and_mends(tmp_path: Path, way: Way) -> None:
    options: dict[str, Any] = {"connect_timeout_s": 0.3, "heartbeat_s": 0.1, "request_timeout_s": 60.0}
    with ExitStack() as stack:
        simulated = stack.enter_context(
            SimulatedWorkers(Behaviour(latency_s=0.02), Behaviour(latency_s=0.02))
        )
        proxy = stack.enter_context(Proxy(simulated.urls[0]))
        sampler = stack.enter_context(sampler_for([proxy.url, simulated.urls[1]], tmp_path, **options))
        for step in range(9):
            sampler.publish(step)
            if step == 3:
                proxy.set(way)
            if step == 6:
                proxy.set("pass")
            asked = examples(6, first=10 * step)
            groups = sampler.sample(asked, 2, SAMPLING, seed=step)
            check_groups(groups, asked, 2)
            assert all(group.policy_version >= step - 1 for group in groups)
            sampler.prepare(examples(6, first=10 * (step + 1)), 2, SAMPLING, seed=step + 1)
        until(lambda: sampler.report()["cluster/w0/version"] == 8)
        check_account(sampler, 54)


@pytest.mark.parametrize("limit", [1, 150, 700, 3000])
def test_connections_that_break_off_after_some_bytes(tmp_path: Path, limit: int) -> None:
    """Within a head, within a body, after some replies: for a worker that is only ever reached like that."""
    with ExitStack() as stack:
        simulated = stack.enter_context(SimulatedWorkers(Behaviour(), Behaviour()))
        proxy = stack.enter_context(Proxy(simulated.urls[0]))
        sampler = stack.enter_context(sampler_for([proxy.url, simulated.urls[1]], tmp_path))
        proxy.cut_after = limit
        for step in range(3):
            sampler.publish(step)
            asked = examples(6, first=10 * step)
            check_groups(sampler.sample(asked, 2, SAMPLING, seed=step), asked, 2)
        check_account(sampler, 18)

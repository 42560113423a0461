"""Exactly once, whole and aligned, whatever the workers do: faults chosen by hypothesis, over real HTTP."""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.simulated_faults import Fault
from benchmarks.simulated_worker import Behaviour

from .made import SAMPLING, check_account, check_groups, cluster, examples

FAULTS: list[Fault] = list(get_args(Fault))
NONSENSE: dict[Fault, str] = {
    "ids": "token 1000 of a vocabulary of 1000",
    "count": "3 completions of a prompt, not 2",
    "groups": "2 groups for 1 prompts",
    "nan": "is no GenerateReply",
    "positive": "log-probability of 0.5",
    "short": "7 log-probabilities of 8 tokens",
    "version": "sampled version 1, not 0",
    "prompt": "answered another prompt",
    "swap": "answered another prompt",
    "stop": "went on after a stop token",
    "request": "answers request another",
    "garbage": "is no GenerateReply",
}
OTHER: dict[Fault, str] = {
    "error": "status 500: something broke",
    "unavailable": "status 503",
    "conflict": "status 409",
    "hang": "did not answer /generate within 0.4 s",
    "close": "cannot be reached for /generate",
    "truncate": "cannot be reached for /generate",
}


def test_every_fault_is_known_here() -> None:
    assert {*NONSENSE, *OTHER, "late"} == set(FAULTS)


@pytest.mark.parametrize("fault", [*NONSENSE, *OTHER])
def test_a_fault_is_named_and_its_group_asked_of_another(
    fault: Fault, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    behaviours = [Behaviour(faults=deque([fault])), Behaviour()]
    with cluster(tmp_path, *behaviours, request_timeout_s=0.4, hedge=False) as (sampler, simulated):
        sampler.publish(0)
        asked = examples(4)
        check_groups(sampler.sample(asked, 2, SAMPLING, seed=1), asked, 2)
        report = check_account(sampler, 4)
        assert report["groups/requeued"] == report["cluster/failed"] == 1
        assert report["cluster/w0/failures"] == 1
        assert report["cluster/w1/failures"] == 0
        failed = next(iter(simulated.workers[0].requests))
        again = [one for one in simulated.workers[1].requests if one.prompts == failed.prompts]
        assert [one.seed for one in again] == [failed.seed]
    assert any(
        {**NONSENSE, **OTHER}[fault] in line and line.startswith("worker w0 (http://127.0.0.1:")
        for line in caplog.messages
    ), caplog.messages


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    faults=st.lists(
        st.lists(st.one_of(st.none(), st.sampled_from(FAULTS)), max_size=8), min_size=1, max_size=3
    ),
    batch=st.booleans(),
    hedge=st.booleans(),
    staleness=st.integers(0, 2),
    prompts=st.integers(1, 9),
)
def test_exactly_once_under_faults(
    faults: list[list[Fault | None]], batch: bool, hedge: bool, staleness: int, prompts: int
) -> None:
    behaviours = [Behaviour(faults=deque(one), batch=batch, late_s=0.05) for one in faults]
    folder = Path(tempfile.mkdtemp())
    try:
        with cluster(folder, *behaviours, request_timeout_s=0.3, hedge=hedge, max_staleness=staleness) as (
            sampler,
            _,
        ):
            steps = 3
            for step in range(steps):
                sampler.publish(step)
                asked = examples(prompts, first=100 * step)
                groups = sampler.sample(asked, 2, SAMPLING, seed=step)
                check_groups(groups, asked, 2)
                assert all(group.policy_version >= step - staleness for group in groups)
                if step + 1 < steps:
                    sampler.prepare(examples(prompts, first=100 * (step + 1)), 2, SAMPLING, seed=step + 1)
            report = check_account(sampler, steps * prompts)
            assert report["cluster/asked"] == steps * prompts
            assert report["cluster/requeued"] == report["cluster/failed"] + report["cluster/stale"]
    finally:
        shutil.rmtree(folder)

"""What a member with nothing to do takes over: second copies of what is slow, and what others have not begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.simulated_worker import Behaviour

from .made import SAMPLING, check_account, check_groups, cluster, examples, until


@pytest.mark.parametrize("batch", [False, True])
def test_a_slow_worker_s_groups_are_asked_of_an_idle_one(tmp_path: Path, batch: bool) -> None:
    """The slow one never answers: without second copies this would wait for request_timeout_s."""
    slow = Behaviour(batch=batch)
    with cluster(tmp_path, slow, Behaviour(batch=batch), request_timeout_s=600, max_staleness=0) as (
        sampler,
        simulated,
    ):
        sampler.publish(0)
        asked = examples(8)
        check_groups(sampler.sample(asked, 2, SAMPLING, seed=0), asked, 2)  # both are known to be as fast
        slow.latency_s = 600.0
        groups = sampler.sample(asked, 2, SAMPLING, seed=1)
        check_groups(groups, asked, 2)
        report = check_account(sampler, 16)
        assert report["cluster/hedged"] >= 1
        assert report["cluster/requeued"] == 0
        # What it is no longer wanted for is cancelled over there: a new version does not wait for it.
        until(lambda: simulated.workers[0].running == 0)
        sampler.publish(1)
        until(lambda: [worker.version for worker in simulated.workers] == [1, 1])


def test_a_copy_has_the_seed_of_its_original(tmp_path: Path) -> None:
    slow = Behaviour(latency_s=600.0)
    with cluster(tmp_path, slow, Behaviour(), request_timeout_s=600) as (sampler, simulated):
        sampler.publish(0)
        sampler.sample(examples(6), 2, SAMPLING, seed=0)
        seeds = [{one.prompts: one.seed for one in worker.requests} for worker in simulated.workers]
        shared = seeds[0].keys() & seeds[1].keys()
        assert shared
        assert all(seeds[0][prompt] == seeds[1][prompt] for prompt in shared)


def test_nothing_is_asked_twice_where_that_is_switched_off(tmp_path: Path) -> None:
    slow = Behaviour(latency_s=0.4)
    with cluster(tmp_path, slow, Behaviour(), hedge=False) as (sampler, simulated):
        sampler.publish(0)
        asked = examples(6)
        check_groups(sampler.sample(asked, 2, SAMPLING, seed=0), asked, 2)
        assert sampler.report()["cluster/hedged"] == 0
        assert sum(len(worker.requests) for worker in simulated.workers) == 6


def test_late_originals_are_duplicates_or_cancelled_never_delivered_twice(tmp_path: Path) -> None:
    """A batch engine's one request holds several groups: those that were copied come again with the rest."""
    with cluster(tmp_path, Behaviour(batch=True), Behaviour()) as (sampler, simulated):
        sampler.publish(0)
        for step in range(6):
            simulated.workers[0].behaviour.latency_s = 0.02 if step % 2 else 0.2
            asked = examples(9, first=10 * step)
            check_groups(sampler.sample(asked, 2, SAMPLING, seed=step), asked, 2)
        check_account(sampler, 54)


def test_what_is_planned_for_a_worker_that_changes_versions_is_taken_over(tmp_path: Path) -> None:
    """One worker is long at taking a version up; the other has it, and finishes the batch."""
    slow = Behaviour()
    with cluster(tmp_path, slow, Behaviour(), max_staleness=0) as (sampler, simulated):
        sampler.publish(0)
        sampler.sample(examples(6), 2, SAMPLING, seed=0)
        slow.activate_s = 600.0
        sampler.publish(1)
        asked = examples(6, first=10)
        groups = sampler.sample(asked, 2, SAMPLING, seed=1)
        check_groups(groups, asked, 2)
        assert {group.policy_version for group in groups} == {1}
        assert simulated.workers[0].version == 0
        check_account(sampler, 12)


def test_few_at_a_time_and_none_left_behind(tmp_path: Path) -> None:
    with cluster(tmp_path, Behaviour(latency_s=0.01), Behaviour(), max_in_flight=2) as (sampler, simulated):
        sampler.publish(0)
        asked = examples(40)
        check_groups(sampler.sample(asked, 1, SAMPLING, seed=0), asked, 1)
        assert all(worker.most_running <= 2 for worker in simulated.workers)
        # Both were taken to be as fast at first; the fast one took over what the slow one had not begun.
        assert len(simulated.workers[1].requests) > 20
        check_account(sampler, 40)

"""`ClusterSampler` as the training loop uses it, before simulated workers over real HTTP."""

from __future__ import annotations

from pathlib import Path

from benchmarks.simulated_worker import Behaviour

from .made import SAMPLING, check_account, check_groups, cluster, examples


def test_groups_come_back_whole_and_in_order(tmp_path: Path) -> None:
    with cluster(tmp_path, Behaviour(), Behaviour()) as (sampler, simulated):
        sampler.publish(0)
        asked = examples(12)
        groups = sampler.sample(asked, 3, SAMPLING, seed=1)
        check_groups(groups, asked, 3)
        assert {group.policy_version for group in groups} == {0}
        check_account(sampler, 12)
        assert all(worker.requests for worker in simulated.workers)


def test_a_new_version_is_sent_activated_and_sampled_from(tmp_path: Path) -> None:
    with cluster(tmp_path, Behaviour(), Behaviour(), max_staleness=0) as (sampler, simulated):
        for version in range(4):
            sampler.publish(version)
            asked = examples(6, first=10 * version)
            groups = sampler.sample(asked, 2, SAMPLING, seed=version)
            check_groups(groups, asked, 2)
            assert {group.policy_version for group in groups} == {version}
        check_account(sampler, 24)
        assert [worker.version for worker in simulated.workers] == [3, 3]

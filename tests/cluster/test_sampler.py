"""`ClusterSampler` as the training loop uses it, before simulated workers over real HTTP."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from benchmarks.simulated_worker import Behaviour
from benchmarks.simulated_workers import SimulatedWorkers
from cluster.sampler import ClusterSampler
from cluster.wire import ModelFingerprint
from mlx_sumrl.errors import UserError
from mlx_sumrl.rollouts.types import Group, NoSamplerError, Sampling

from .made import (
    SAMPLING,
    Snapshots,
    check_account,
    check_groups,
    cluster,
    examples,
    sampler_for,
    until,
)


def test_groups_come_back_whole_and_in_order(tmp_path: Path) -> None:
    with cluster(tmp_path, Behaviour(), Behaviour()) as (sampler, simulated):
        sampler.publish(0)
        asked = examples(12)
        groups = sampler.sample(asked, 3, SAMPLING, seed=1)
        check_groups(groups, asked, 3)
        assert {group.policy_version for group in groups} == {0}
        check_account(sampler, 12)
        assert all(worker.requests for worker in simulated.workers)
        assert "w0 v0 " in sampler.status()


def test_no_prompts_are_no_request(tmp_path: Path) -> None:
    with cluster(tmp_path, Behaviour()) as (sampler, simulated):
        sampler.publish(0)
        sampler.prepare([], 2, SAMPLING, seed=0)
        assert sampler.sample([], 2, SAMPLING, seed=0) == []
        assert not simulated.workers[0].requests


def test_a_new_version_is_sent_activated_and_sampled_from(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    with cluster(tmp_path, Behaviour(), Behaviour(), snapshots=snapshots, max_staleness=0) as (
        sampler,
        simulated,
    ):
        for version in range(4):
            sampler.publish(version)
            sampler.publish(version)  # as at the beginning of a stage: nothing new
            asked = examples(6, first=10 * version)
            groups = sampler.sample(asked, 2, SAMPLING, seed=version)
            check_groups(groups, asked, 2)
            assert {group.policy_version for group in groups} == {version}
        check_account(sampler, 24)
        assert [worker.activations for worker in simulated.workers] == [[0, 1, 2, 3]] * 2
        assert [worker.most_running_at_activation for worker in simulated.workers] == [0, 0]
    assert snapshots.taken == [0, 1, 2, 3]
    assert snapshots.threads == {threading.get_ident()}
    assert list(tmp_path.iterdir()) == []


def test_one_batch_engine_gets_the_whole_batch_as_it_is(tmp_path: Path) -> None:
    """What makes a run through one MLX engine that of the local sampler, bit for bit."""
    with cluster(tmp_path, Behaviour(batch=True), max_staleness=0) as (sampler, simulated):
        asked = examples(9)
        sampler.publish(0)
        sampler.sample(asked, 2, Sampling(temperature=0.7, top_p=0.9, top_k=5, max_tokens=8), seed=77)
        sampler.prepare(asked[:5], 2, SAMPLING, seed=78)
        sampler.publish(1)
        sampler.sample(asked[:5], 2, SAMPLING, seed=78)
        first, second = simulated.workers[0].requests
    assert first.prompts == tuple(one.prompt_ids for one in asked)
    assert (first.seed, first.group_size, first.policy_version) == (77, 2, 0)
    assert (first.draw.temperature, first.draw.top_p, first.draw.top_k) == (0.7, 0.9, 5)
    assert second.prompts == tuple(one.prompt_ids for one in asked[:5])
    assert (second.seed, second.policy_version) == (78, 1)


def test_two_batch_engines_share_a_batch_in_one_request_each(tmp_path: Path) -> None:
    with cluster(tmp_path, Behaviour(batch=True), Behaviour(batch=True), hedge=False) as (sampler, simulated):
        sampler.publish(0)
        members = sampler._open().members
        until(lambda: all(one.open for one in members))  # or the first takes what the second has not begun
        asked = examples(8)
        sampler.sample(asked, 2, SAMPLING, seed=1)
        assert [len(worker.requests) for worker in simulated.workers] == [1, 1]
        assert [len(worker.requests[0].prompts) for worker in simulated.workers] == [4, 4]


def test_the_same_seed_asks_the_same(tmp_path: Path) -> None:
    seeds = []
    for _ in range(2):
        with cluster(tmp_path, Behaviour()) as (sampler, simulated):
            sampler.publish(0)
            sampler.sample(examples(6), 2, SAMPLING, seed=5)
            seeds.append({one.prompts: one.seed for one in simulated.workers[0].requests})
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0].values())) == 6


def test_what_is_prepared_is_sampled_beside_and_taken_once(tmp_path: Path) -> None:
    with cluster(tmp_path, Behaviour()) as (sampler, simulated):
        worker = simulated.workers[0]
        sampler.publish(0)
        asked = examples(5)
        sampler.prepare(asked, 2, SAMPLING, seed=1)
        until(lambda: len(worker.requests) == 5)  # without sample
        sampler.publish(1)
        groups = sampler.sample(asked, 2, SAMPLING, seed=1)
        check_groups(groups, asked, 2)
        assert {group.policy_version for group in groups} == {0}
        assert len(worker.requests) == 5
        check_account(sampler, 5)


def test_two_steps_ahead_are_sampled_in_their_order(tmp_path: Path) -> None:
    """A worker goes from one step to the next without a word from the trainer in between."""
    with cluster(tmp_path, Behaviour()) as (sampler, simulated):
        worker = simulated.workers[0]
        first, second = examples(3), examples(4, first=10)
        sampler.publish(0)
        for asked in (first, second, first):  # told of again, which changes nothing
            sampler.prepare(asked, 2, SAMPLING, seed=1)
        until(lambda: len(worker.requests) == 7 and worker.running == 0)
        sent = sorted(worker.requests, key=lambda one: int(one.request_id.rpartition("-")[2]))  # as they left
        assert [one.prompts[0] for one in sent] == [one.prompt_ids for one in (*first, *second)]
        check_groups(sampler.sample(first, 2, SAMPLING, seed=1), first, 2)
        assert sampler.report()["cluster/lost"] == 0  # what is still ahead is not lost
        sampler.publish(1)
        groups = sampler.sample(second, 2, SAMPLING, seed=1)
        check_groups(groups, second, 2)
        assert {group.policy_version for group in groups} == {0}
        assert len(worker.requests) == 7
        check_account(sampler, 7)


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_two_steps_ahead_are_no_staler_than_asked_for(tmp_path: Path, staleness: int) -> None:
    """The loop of the trainer: what is prepared before the sample before it waits for a version that will do."""
    with cluster(tmp_path, Behaviour(), Behaviour(), max_staleness=staleness) as (sampler, _):
        sampler.publish(0)
        for step in range(6):
            for ahead in (0, 1):
                sampler.prepare(examples(4, first=10 * (step + ahead)), 2, SAMPLING, seed=step + ahead)
            asked = examples(4, first=10 * step)
            groups = sampler.sample(asked, 2, SAMPLING, seed=step)
            check_groups(groups, asked, 2)
            assert all(0 <= step - group.policy_version <= staleness for group in groups)
            sampler.publish(step + 1)
        assert sampler.report()["cluster/requeued"] == 0


@pytest.mark.parametrize("activate_s", [0.0, 0.1])
@pytest.mark.parametrize("batch", [False, True])
def test_the_next_version_is_asked_of_a_worker_before_it_has_it(
    tmp_path: Path, batch: bool, activate_s: float
) -> None:
    """Its engine goes from one version to the next without a word in between; nothing is refused or asked twice."""
    behaviours = [Behaviour(latency_s=0.1, activate_s=activate_s, batch=batch) for _ in range(2)]
    with cluster(tmp_path, *behaviours, hedge=False) as (sampler, simulated):
        sampler.publish(0)
        for step in range(5):
            for ahead in range(sampler.ahead + 1):
                sampler.prepare(examples(6, first=10 * (step + ahead)), 2, SAMPLING, seed=step + ahead)
            asked = examples(6, first=10 * step)
            groups = sampler.sample(asked, 2, SAMPLING, seed=step)
            check_groups(groups, asked, 2)
            sampler.publish(step + 1)
        report = sampler.report()
        assert (
            report["cluster/requeued"] == report["cluster/w0/failures"] == report["cluster/w1/failures"] == 0
        )
        assert [worker.most_running_at_activation for worker in simulated.workers] == [0, 0]
        assert sum(worker.early for worker in simulated.workers) > 0


def test_what_was_prepared_for_nothing_is_discarded(tmp_path: Path) -> None:
    with cluster(tmp_path, Behaviour()) as (sampler, _simulated):
        sampler.publish(0)
        sampler.prepare(examples(5), 2, SAMPLING, seed=1)
        asked = examples(5, first=50)
        check_groups(sampler.sample(asked, 2, SAMPLING, seed=1), asked, 2)
        sampler.prepare(asked, 2, SAMPLING, seed=2)
        sampler.prepare(asked, 2, SAMPLING, seed=3)
        check_groups(sampler.sample(asked, 2, SAMPLING, seed=3), asked, 2)
        report = check_account(sampler, 10)
        assert report["cluster/discarded"] == 10
        assert report["cluster/asked"] == 20


def test_without_staleness_nothing_is_sampled_ahead(tmp_path: Path) -> None:
    with cluster(tmp_path, Behaviour(), max_staleness=0) as (sampler, simulated):
        sampler.publish(0)
        sampler.sample(examples(1), 2, SAMPLING, seed=0)
        asked = examples(4, first=10)
        sampler.prepare(asked, 2, SAMPLING, seed=1)
        assert len(simulated.workers[0].requests) == 1
        sampler.publish(1)
        until(lambda: len(simulated.workers[0].requests) == 5)
        groups = sampler.sample(asked, 2, SAMPLING, seed=1)
        assert {group.policy_version for group in groups} == {1}
        assert {one.policy_version for one in simulated.workers[0].requests[1:]} == {1}


def test_a_step_without_a_new_version_is_sampled_all_the_same(tmp_path: Path) -> None:
    """A skipped update publishes nothing; what waited for a version must not wait for ever."""
    with cluster(tmp_path, Behaviour(), max_staleness=0) as (sampler, _):
        sampler.publish(0)
        asked = examples(3)
        sampler.prepare(asked, 2, SAMPLING, seed=1)
        groups = sampler.sample(asked, 2, SAMPLING, seed=1)
        assert {group.policy_version for group in groups} == {0}


def test_what_became_too_old_is_asked_again_whole(tmp_path: Path) -> None:
    """Prepared under 0 for a policy at 1, taken at 3: too old for a staleness of 1, so all of it anew."""
    with cluster(tmp_path, Behaviour()) as (sampler, simulated):
        worker = simulated.workers[0]
        sampler.publish(0)
        asked = examples(4)
        sampler.prepare(asked, 2, SAMPLING, seed=1)
        until(lambda: len(worker.requests) == 4 and worker.running == 0)
        for version in (1, 2, 3):
            sampler.publish(version)
        groups = sampler.sample(asked, 2, SAMPLING, seed=1)
        check_groups(groups, asked, 2)
        assert all(group.policy_version >= 2 for group in groups)
        report = check_account(sampler, 4)
        assert report["groups/requeued"] == report["cluster/stale"] == 4
        assert [one.prompts for one in worker.requests].count((asked[0].prompt_ids,)) == 2
        sampler.sample(asked, 2, SAMPLING, seed=2)
        assert sampler.report()["groups/requeued"] == 0


@pytest.mark.parametrize(
    ("every", "staleness", "sent"), [(1, 1, [0, 1, 2, 3, 4]), (2, 1, [0, 2, 4]), (3, 2, [0, 3])]
)
def test_publish_every(tmp_path: Path, every: int, staleness: int, sent: list[int]) -> None:
    snapshots = Snapshots(tmp_path)
    with cluster(
        tmp_path, Behaviour(), snapshots=snapshots, publish_every=every, max_staleness=staleness
    ) as (sampler, _):
        for version in range(5):
            sampler.publish(version)
            asked = examples(3, first=version)
            groups = sampler.sample(asked, 2, SAMPLING, seed=version)
            check_groups(groups, asked, 2)
            assert all(0 <= version - group.policy_version <= staleness for group in groups)
            sampler.prepare(examples(3, first=version + 1), 2, SAMPLING, seed=version + 1)
    assert snapshots.taken == sent


def test_versions_that_grow_by_two_a_step_are_published_in_time(tmp_path: Path) -> None:
    """Two updates per rollout: every publication is two versions on, more than publish_every alone would allow."""
    snapshots = Snapshots(tmp_path)
    with cluster(tmp_path, Behaviour(), snapshots=snapshots, publish_every=2) as (sampler, _):
        for version in (0, 2, 4, 6):
            sampler.publish(version)
            sampler.prepare(examples(3), 2, SAMPLING, seed=version)
            groups = sampler.sample(examples(3), 2, SAMPLING, seed=version)
            assert all(group.policy_version >= version - 1 for group in groups)
        assert sampler.report()["cluster/requeued"] == 0
    assert snapshots.taken == [0, 2, 4, 6]


def test_a_worker_of_another_model_stops_it_before_any_training(tmp_path: Path) -> None:
    other = ModelFingerprint(config="a" * 64, tokenizer="c" * 64)
    with (
        pytest.raises(
            UserError, match=r"worker w1 .*another tokenizer than the trainer's; start it with the same"
        ),
        cluster(tmp_path, Behaviour(), Behaviour(fingerprint=other)),
    ):
        pass
    with (
        pytest.raises(UserError, match="version 9 of the API, this trainer 1"),
        cluster(tmp_path, Behaviour(api=9)),
    ):
        pass


def test_the_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret-word\n")
    with cluster(tmp_path / "a", Behaviour(token="secret-word"), token_file=str(file)) as (sampler, _):
        sampler.publish(0)
        assert len(sampler.sample(examples(2), 2, SAMPLING, seed=0)) == 2
    with (
        pytest.raises(UserError, match="status 401: wrong token; give its token file") as caught,
        cluster(tmp_path / "b", Behaviour(token="another"), token_file=str(file)),
    ):
        pass
    assert "secret-word" not in str(caught.value)


def test_a_worker_that_cannot_draw_as_it_will_be_asked_to_is_none(tmp_path: Path) -> None:
    """Known before anything is sampled, however late it would be asked."""
    drawn = [SAMPLING, Sampling(temperature=0.3, max_tokens=8)]
    said = r"worker w0 .* gives log-probabilities .* temperature 0\.3, .* start it with --engine mlx"
    with (
        pytest.raises(UserError, match=said),
        cluster(tmp_path / "a", Behaviour(filters=False), Behaviour(), drawn=drawn),
    ):
        pass
    with cluster(tmp_path / "b", Behaviour(), drawn=drawn) as (sampler, _):
        sampler.publish(0)
        assert len(sampler.sample(examples(1), 2, drawn[1], seed=0)) == 1


def test_what_an_engine_cannot_do_is_said_at_once(tmp_path: Path) -> None:
    with cluster(tmp_path, Behaviour(filters=False)) as (sampler, _):
        sampler.publish(0)
        with pytest.raises(UserError, match=r"worker w0 gives log-probabilities before temperature"):
            sampler.sample(examples(1), 2, Sampling(temperature=0.7, max_tokens=8), seed=0)
        with pytest.raises(UserError, match=r"worker w0 takes 4096 tokens, .* may have 5002"):
            sampler.sample(examples(1), 2, Sampling(max_tokens=5000), seed=0)
        assert len(sampler.sample(examples(1), 2, SAMPLING, seed=0)) == 1


def test_no_worker_at_the_start(tmp_path: Path) -> None:
    with SimulatedWorkers(Behaviour()) as simulated:
        simulated.down(0)
        with pytest.raises(
            NoSamplerError, match=r"no worker answers after 0\.2 s: w0 \(http://127.*cannot be reached"
        ):
            sampler_for(simulated.urls, tmp_path, wait_for_workers_s=0.2)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are counted in /proc")
def test_close_leaves_neither_threads_nor_sockets(tmp_path: Path) -> None:
    with SimulatedWorkers(Behaviour(latency_s=30), Behaviour()) as simulated:
        for round_ in range(3):
            threads, files = threading.active_count(), open_files()
            sampler: ClusterSampler = sampler_for(simulated.urls, tmp_path)
            sampler.publish(0)
            sampler.publish(1)
            sampler.prepare(examples(6), 2, SAMPLING, seed=1)  # some of it under way for ever
            until(lambda: simulated.workers[0].running > 0)
            assert threading.active_count() > threads
            sampler.close()
            sampler.close()
            assert threading.active_count() == threads
            until(lambda: simulated.workers[0].running == 0)
            # The other ends of the connections are in this process too, and close a moment later.
            until(lambda files=files: open_files() == files)
            with pytest.raises(RuntimeError, match="closed"):
                sampler.sample(examples(1), 1, SAMPLING, seed=round_)


def test_sample_before_publish_is_a_fault_of_the_program(tmp_path: Path) -> None:
    with cluster(tmp_path, Behaviour()) as (sampler, _), pytest.raises(RuntimeError, match="call publish"):
        sampler.sample(examples(1), 1, SAMPLING, seed=0)


def test_groups_are_told_of_as_they_come_those_prepared_too(tmp_path: Path) -> None:
    """Each once, with its own row, from the event loop's thread, and before anybody asks for it; what is wrong with
    whoever is told is nobody else's."""
    told: list[Group] = []
    threads: set[int] = set()

    def tell(group: Group) -> None:
        told.append(group)
        threads.add(threading.get_ident())
        if len(told) % 3 == 0:
            raise ValueError("by hand")

    with cluster(tmp_path, Behaviour(), Behaviour(), max_staleness=1) as (sampler, _):
        sampler.on_group = tell
        sampler.publish(0)
        asked = [examples(6, first=10 * step) for step in range(3)]
        for step in range(3):
            for ahead in range(step, min(step + 2, 3)):
                sampler.prepare(asked[ahead], 2, SAMPLING, seed=ahead)
            until(lambda: len(told) >= 6 * min(step + 2, 3))  # noqa: B023  (called at once)
            groups = sampler.sample(asked[step], 2, SAMPLING, seed=step)
            check_groups(groups, asked[step], 2)
            same = [[one for one in told if one.example is group.example] for group in groups]
            assert same == [[group] for group in groups]
            sampler.publish(step + 1)
        check_account(sampler, 18)
    assert len(threads) == 1
    assert threading.get_ident() not in threads

"""Who is asked and who is not: canaries, transfers, loss, return, and what happens when nobody is left."""

from __future__ import annotations

import logging
import time
from collections import deque
from pathlib import Path

import pytest

from benchmarks.simulated_worker import STARTED_WITH, WEIGHTS, Behaviour
from cluster.snapshot import Snapshot
from mlx_sumrl.errors import UserError
from mlx_sumrl.rollouts.types import NoSamplerError

from .made import SAMPLING, Snapshots, check_account, check_groups, cluster, examples, until, weights_of


def test_a_worker_whose_canary_is_off_is_not_asked_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with cluster(tmp_path, Behaviour(canary_off=0.01), Behaviour(), canary_tolerance=0.005) as (
        sampler,
        simulated,
    ):
        sampler.publish(0)
        asked = examples(4)
        check_groups(sampler.sample(asked, 2, SAMPLING, seed=0), asked, 2)
        assert simulated.workers[0].requests == []
        assert sampler.report()["cluster/w0/version"] == -1
        until(
            lambda: any(
                "0.01 off the trainer's, more than canary_tolerance 0.005" in one for one in caplog.messages
            )
        )
        # Mended, it is taken in.
        simulated.workers[0].behaviour.canary_off = 0.0
        until(lambda: sampler.report()["cluster/w0/version"] == 0)


@pytest.mark.parametrize("tolerance", [0.009, 0.011])
def test_the_tolerance_is_where_it_is_said_to_be(tmp_path: Path, tolerance: float) -> None:
    with cluster(tmp_path, Behaviour(canary_off=0.01), canary_tolerance=tolerance) as (sampler, _):
        sampler.publish(0)
        if tolerance < 0.01:
            # Waiting does not help: it ends at once, although 20 s may be waited for a worker that is away.
            with pytest.raises(
                NoSamplerError, match=r"no worker is left to sample from: w0 \(http.* off the trainer's"
            ):
                sampler.sample(examples(1), 1, SAMPLING, seed=0)
        else:
            assert len(sampler.sample(examples(1), 1, SAMPLING, seed=0)) == 1


def test_weights_that_are_not_the_trainers_are_found_by_the_canary(tmp_path: Path) -> None:
    """Every byte of the file arrives; but the trainer's log-probabilities are those of other weights."""

    class Drifted(Snapshots):
        def __call__(self, version: int) -> Snapshot:
            snapshot = super().__call__(version)
            if version == 1:
                (snapshot.folder / WEIGHTS).write_text(f"{weights_of(1) + 0.01}")
            return snapshot

    with cluster(tmp_path, Behaviour(), snapshots=Drifted(tmp_path), max_staleness=0) as (sampler, simulated):
        sampler.publish(0)
        sampler.sample(examples(1), 1, SAMPLING, seed=0)
        sampler.publish(1)
        with pytest.raises(NoSamplerError, match=r"under version 1 are 0\.01 off"):
            sampler.sample(examples(1), 1, SAMPLING, seed=1)
        assert simulated.workers[0].activations[-1] == 1  # it did take it up
        assert sampler.report()["cluster/delivered"] == 1


class Greedy(Snapshots):
    """Its most likely continuation is the canary's own beginning, as the simulated engine's is."""

    def __init__(self, folder: Path, ids: tuple[int, ...], off: float = 0.0) -> None:
        super().__init__(folder)
        self.ids, self.off = ids, off

    def __call__(self, version: int) -> Snapshot:
        made = super().__call__(version)
        logprobs = (made.canary_logprobs[0] + self.off,) * len(self.ids)
        return Snapshot(made.version, made.kind, made.folder, made.canary_logprobs, self.ids, logprobs)


@pytest.mark.parametrize(
    ("ids", "off", "well"),
    [
        ((5, 6, 7), 0.0, True),
        ((5, 6, 7), 0.01, False),
        ((5, 9, 9), 0.0, True),  # a tie: as likely, so both are the most likely
        ((5, 9, 9), 0.01, False),
        ((), 0.0, False),
    ],
)
def test_an_engine_that_cannot_score_shows_its_most_likely_tokens(
    tmp_path: Path, ids: tuple[int, ...], off: float, well: bool
) -> None:
    behaviour = Behaviour(score=False)
    with cluster(tmp_path, behaviour, snapshots=Greedy(tmp_path, ids, off), canary_tolerance=0.005) as (
        sampler,
        simulated,
    ):
        sampler.publish(0)
        if well:
            assert len(sampler.sample(examples(1), 1, SAMPLING, seed=0)) == 1
            assert simulated.workers[0].requests[0].draw.temperature == 0
        else:
            with pytest.raises(NoSamplerError, match=r"off the trainer's|cannot score a text"):
                sampler.sample(examples(1), 1, SAMPLING, seed=0)


def test_a_transfer_that_is_cut_goes_on_where_it_was(tmp_path: Path) -> None:
    with cluster(tmp_path, Behaviour(), max_staleness=0) as (sampler, simulated):
        worker = simulated.workers[0]
        sampler.publish(0)
        sampler.sample(examples(1), 1, SAMPLING, seed=0)
        worker.cut_off_after = 1
        sampler.publish(1)
        groups = sampler.sample(examples(2), 1, SAMPLING, seed=1)
        assert {group.policy_version for group in groups} == {1}
        assert worker.cut_off_after is None
        assert worker.files_received == 2  # each of both files once


def test_sampling_goes_on_while_a_version_is_sent(tmp_path: Path) -> None:
    """The worker takes no new version up before it has it all, and answers under the old one until then."""
    with cluster(tmp_path, Behaviour(), max_staleness=1) as (sampler, simulated):
        worker = simulated.workers[0]
        sampler.publish(0)
        sampler.sample(examples(1), 1, SAMPLING, seed=0)
        worker.receive_gate.clear()
        sampler.publish(1)
        until(lambda: worker.receiving > 0)
        groups = sampler.sample(examples(3), 1, SAMPLING, seed=1)
        assert {group.policy_version for group in groups} == {0}
        simulated.call(worker.receive_gate.set)
        until(lambda: worker.version == 1)
        assert worker.activations == [0, 1]


def test_an_evicted_worker_returns_with_the_current_version(tmp_path: Path) -> None:
    with cluster(tmp_path, Behaviour(), Behaviour(), max_staleness=0) as (sampler, simulated):
        sampler.publish(0)
        sampler.sample(examples(4), 1, SAMPLING, seed=0)
        simulated.down(0)
        for version in (1, 2):
            sampler.publish(version)
            asked = examples(4, first=10 * version)
            groups = sampler.sample(asked, 1, SAMPLING, seed=version)
            check_groups(groups, asked, 1)
            assert {group.policy_version for group in groups} == {version}
        until(lambda: sampler.report()["cluster/w0/version"] == -1)
        simulated.up(0)
        until(lambda: sampler.report()["cluster/w0/version"] == 2)
        assert simulated.workers[0].weights == {0: STARTED_WITH, 2: weights_of(2)}
        before = len(simulated.workers[0].requests)
        asked = examples(6, first=50)
        check_groups(sampler.sample(asked, 1, SAMPLING, seed=9), asked, 1)
        assert {one.policy_version for one in simulated.workers[0].requests[before:]} == {2}
        check_account(sampler, 18)


def test_a_restarted_worker_is_noticed_by_its_version(tmp_path: Path) -> None:
    """It is up again before anybody saw it down: healthy, and at version 0."""
    with cluster(tmp_path, Behaviour(), max_staleness=0) as (sampler, simulated):
        worker = simulated.workers[0]
        sampler.publish(3)
        sampler.sample(examples(1), 1, SAMPLING, seed=0)
        simulated.call(worker.restart)
        asked = examples(5)
        groups = sampler.sample(asked, 1, SAMPLING, seed=1)
        check_groups(groups, asked, 1)
        assert {group.policy_version for group in groups} == {3}
        assert worker.activations == [3, 3]


def test_another_run_s_version_of_the_same_number_is_replaced(tmp_path: Path) -> None:
    with cluster(tmp_path / "a", Behaviour(), max_staleness=0) as (sampler, simulated):
        sampler.publish(1)
        sampler.sample(examples(1), 1, SAMPLING, seed=0)
        worker = simulated.workers[0]
        worker.weights[1] = 9.0  # as another run left it, active
        worker.forget_manifests()
        simulated.call(lambda: setattr(worker.behaviour, "ready", False))
        until(lambda: sampler.report()["cluster/w0/version"] == -1)
        simulated.call(lambda: setattr(worker.behaviour, "ready", True))
        groups = sampler.sample(examples(2), 1, SAMPLING, seed=1)
        check_groups(groups, examples(2), 1)
        assert worker.activations == [1, 0, 1]


def test_a_few_failures_are_forgiven_more_in_a_row_evict(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    faults = deque(["error", "error", None, "error", "error", "error"])
    with cluster(tmp_path, Behaviour(faults=faults), evict_after=3, max_in_flight=1, heartbeat_s=60) as (  # type: ignore[arg-type]
        sampler,
        simulated,
    ):
        sampler.publish(0)
        asked = examples(1)
        check_groups(sampler.sample(asked, 1, SAMPLING, seed=0), asked, 1)
        assert simulated.workers[0].activations == [0]  # never out
        check_groups(sampler.sample(asked, 1, SAMPLING, seed=1), asked, 1)
        assert simulated.workers[0].activations == [0, 0]  # out, and admitted anew
        assert any("it failed too often in a row" in one for one in caplog.messages)
        report = check_account(sampler, 2)
        assert report["cluster/failed"] == 5


def test_all_gone_waits_and_then_says_who_and_why(tmp_path: Path) -> None:
    with cluster(tmp_path, Behaviour(), Behaviour(), wait_for_workers_s=0.5) as (sampler, simulated):
        sampler.publish(0)
        sampler.sample(examples(2), 1, SAMPLING, seed=0)
        simulated.down(0)
        simulated.down(1)
        started = time.monotonic()
        with pytest.raises(NoSamplerError) as caught:
            sampler.sample(examples(2), 1, SAMPLING, seed=1)
        assert time.monotonic() - started >= 0.5
        sentence = str(caught.value)
        assert sentence.startswith(
            "no worker is left to sample from after 0.5 s of waiting: w0 (http://127.0.0.1:"
        )
        assert "; w1 (http://127.0.0.1:" in sentence
        assert sentence.count("cannot be reached") == 2
        assert "\n" not in sentence
        report = sampler.report()
        assert report["cluster/lost"] == 0
        assert report["cluster/discarded"] == 2


def test_a_worker_that_comes_within_the_wait_is_enough(tmp_path: Path) -> None:
    with cluster(tmp_path, Behaviour(), max_staleness=0) as (sampler, simulated):
        sampler.publish(0)
        sampler.sample(examples(1), 1, SAMPLING, seed=0)
        simulated.down(0)
        sampler.publish(1)
        asked = examples(3)
        sampler.prepare(asked, 2, SAMPLING, seed=1)
        until(lambda: sampler.report()["cluster/w0/version"] == -1)
        simulated.up(0)
        groups = sampler.sample(asked, 2, SAMPLING, seed=1)
        check_groups(groups, asked, 2)
        assert {group.policy_version for group in groups} == {1}


def test_workers_that_are_there_and_never_deliver_end_the_run_too(tmp_path: Path) -> None:
    faults = deque(["ids"] * 100_000)
    behaviour = Behaviour(faults=faults)  # type: ignore[arg-type]
    with cluster(tmp_path, behaviour, wait_for_workers_s=0.3, request_timeout_s=0.2) as (sampler, _):
        sampler.publish(0)
        with pytest.raises(
            NoSamplerError, match=r"no worker has delivered a group for 0\.5 s: w0 .*token 1000"
        ):
            sampler.sample(examples(2), 1, SAMPLING, seed=0)


def test_what_cannot_be_published(tmp_path: Path) -> None:
    with (
        cluster(tmp_path, Behaviour(), max_weights_bytes=3) as (sampler, _),
        pytest.raises(UserError, match=r"version 1 has \d+ bytes, more than max_weights_bytes 3; raise it"),
    ):
        sampler.publish(1)

    class Short(Snapshots):
        def __call__(self, version: int) -> Snapshot:
            made = super().__call__(version)
            return Snapshot(made.version, made.kind, made.folder, made.canary_logprobs[1:])

    with (
        cluster(tmp_path, Behaviour(), snapshots=Short(tmp_path / "b")) as (sampler, _),
        pytest.raises(UserError, match="2 canary log-probabilities"),
    ):
        sampler.publish(1)

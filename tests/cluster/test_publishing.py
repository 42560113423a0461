"""How a version travels: whole or as a delta, once for all workers, and gone from the trainer's disk afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated_worker import WEIGHTS, Behaviour
from benchmarks.simulated_workers import SimulatedWorkers
from cluster import publishing
from cluster.sampler import ClusterSampler
from cluster.wire import Manifest
from cluster.worker_client import CHUNK
from mlx_sumrl.errors import UserError

from .made import SAMPLING, Snapshots, check_groups, cluster, examples, until


@dataclass
class Summary:
    """As `cluster.delta` returns it, as far as it is read here."""

    fingerprint: str = "c" * 64


class Patches:
    """In the place of `cluster.delta.make_patch`: a patch says what the number is to become."""

    def __init__(self, larger: bool = False, broken: bool = False) -> None:
        self.made: list[tuple[str, str]] = []
        self.larger, self.broken = larger, broken

    def __call__(self, base: Path, new: Path, out: Path) -> Summary:
        self.made.append((base.name.partition("-")[0], new.name.partition("-")[0]))
        if self.broken:
            raise UserError("the folders differ in their tensors")
        text = (new / WEIGHTS).read_text().split()[0]
        (out / WEIGHTS).write_text(text + " " * 10_000 * self.larger)
        return Summary()


class Full(Snapshots):
    """Whole weights of some size, after which a delta is small."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "full")

    def __call__(self, version: int) -> Any:
        made = super().__call__(version)
        with (made.folder / WEIGHTS).open("a") as file:
            file.write(" " * 5000)
        return made


def step(sampler: ClusterSampler, version: int) -> None:
    sampler.publish(version)
    asked = examples(4, first=10 * version)
    groups = sampler.sample(asked, 2, SAMPLING, seed=version)
    check_groups(groups, asked, 2)
    assert {group.policy_version for group in groups} == {version}


def manifests(simulated: SimulatedWorkers, place: int = 0) -> dict[int, Manifest]:
    return simulated.workers[place].manifests


def test_a_worker_that_holds_the_last_version_is_sent_a_delta(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches = Patches()
    monkeypatch.setattr(publishing, "_patch_maker", lambda: patches)
    options: dict[str, Any] = {"snapshots": Full(tmp_path), "max_staleness": 0}
    with cluster(tmp_path, Behaviour(), Behaviour(), **options) as (sampler, simulated):
        for version in range(4):
            step(sampler, version)
            until(lambda: all(worker.version == version for worker in simulated.workers))  # noqa: B023
        assert patches.made == [("v0", "v1"), ("v1", "v2"), ("v2", "v3")]  # once for both of them
        for place in (0, 1):
            sent = manifests(simulated, place)
            assert [sent[one].kind for one in (1, 2, 3)] == ["delta"] * 3
            assert [sent[one].base for one in (1, 2, 3)] == [0, 1, 2]
        # One that comes back with nothing has no base: it gets the whole.
        simulated.down(0)
        simulated.up(0)
        until(lambda: simulated.workers[0].version == 3)
        assert manifests(simulated)[3].kind == "full"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("why", ["refused", "larger", "broken", "missing"])
def test_without_a_delta_the_whole_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    patches = Patches(larger=why == "larger", broken=why == "broken")
    monkeypatch.setattr(publishing, "_patch_maker", lambda: None if why == "missing" else patches)
    options: dict[str, Any] = {"snapshots": Full(tmp_path), "max_staleness": 0}
    with cluster(tmp_path, Behaviour(deltas=why != "refused"), **options) as (sampler, simulated):
        for version in range(3):
            step(sampler, version)
        assert [manifests(simulated)[one].kind for one in (1, 2)] == ["full", "full"]
        assert sampler.report()["cluster/w0/failures"] == 0
    assert list(tmp_path.iterdir()) == []


def test_adapters_are_always_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = Patches()
    monkeypatch.setattr(publishing, "_patch_maker", lambda: patches)
    with cluster(tmp_path, Behaviour(), max_staleness=0) as (sampler, simulated):
        for version in range(3):
            step(sampler, version)
        assert manifests(simulated)[2].kind == "adapter"
    assert patches.made == []


def test_large_files_are_streamed(tmp_path: Path) -> None:
    """Longer than a chunk, and not a multiple of one: what arrives has the sha256 that was announced."""

    class Large(Snapshots):
        def __call__(self, version: int) -> Any:
            made = super().__call__(version)
            with (made.folder / WEIGHTS).open("a") as file:
                file.write("x" * (3 * CHUNK + 17))
            return made

    with cluster(tmp_path, Behaviour(), snapshots=Large(tmp_path), max_staleness=0) as (sampler, _):
        step(sampler, 1)
        assert sampler.report()["cluster/bytes_sent"] > 3 * CHUNK


def test_old_versions_leave_the_disk_while_the_run_goes_on(tmp_path: Path) -> None:
    with cluster(tmp_path, Behaviour(), max_staleness=0) as (sampler, _):
        for version in range(6):
            step(sampler, version)
        until(lambda: {one.name for one in tmp_path.iterdir()} == {"v4-5", "v5-6"})


def test_what_was_sampled_before_the_canary_is_taken_only_after_it(tmp_path: Path) -> None:
    """A known worker samples while its canary is asked for; where that fails, nothing of it is delivered."""
    with cluster(tmp_path, Behaviour(), Behaviour(), max_staleness=0, canary_tolerance=0.005) as (
        sampler,
        simulated,
    ):
        step(sampler, 0)
        simulated.workers[0].behaviour.canary_off = 0.01
        simulated.workers[1].behaviour.activate_s = 0.2  # so that the other one is asked first
        step(sampler, 1)
        report = sampler.report()
        assert report["cluster/w0/version"] == -1
        assert report["cluster/lost"] == 0

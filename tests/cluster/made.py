"""A cluster sampler before simulated workers, and a policy that is one number."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.simulated_faults import STOP, VOCABULARY
from benchmarks.simulated_worker import (
    FINGERPRINT,
    STARTED_WITH,
    WEIGHTS,
    Behaviour,
    logprob_of,
)
from benchmarks.simulated_workers import SimulatedWorkers
from cluster.nodes import NodesConfig
from cluster.sampler import ClusterSampler
from cluster.snapshot import Snapshot
from mlx_sumrl.data.example import Example
from mlx_sumrl.rollouts.types import Group, Sampling

CANARY = (5, 6, 7, 8)
SAMPLING = Sampling(max_tokens=8)
QUICK: dict[str, Any] = {
    "request_timeout_s": 5.0,
    "connect_timeout_s": 2.0,
    "wait_for_workers_s": 20.0,
    "heartbeat_s": 0.2,
    "return_after_s": 0.02,
    "return_at_most_s": 0.1,
    "canary_tolerance": 1e-6,
}
"""Options with which faults are found fast."""


def weights_of(version: int) -> float:
    """The one number of this policy's version; far enough from its neighbours' for the canary."""
    return STARTED_WITH + 0.25 * version


class Snapshots:
    """What a recipe hands in: writes a version's files when it is published."""

    def __init__(self, folder: Path, kind: str = "adapter") -> None:
        self.folder = folder
        self.kind = kind
        self.taken: list[int] = []
        self.threads: set[int] = set()

    def __call__(self, version: int) -> Snapshot:
        self.taken.append(version)
        self.threads.add(threading.get_ident())
        folder = self.folder / f"v{version}-{len(self.taken)}"
        folder.mkdir(parents=True)
        (folder / WEIGHTS).write_text(f"{weights_of(version)}\n")
        (folder / "adapter_config.json").write_text("{}")
        logprob = logprob_of(weights_of(version))
        return Snapshot(
            version=version,
            kind="full" if self.kind == "full" else "adapter",
            folder=folder,
            canary_logprobs=(logprob,) * (len(CANARY) - 1),
        )


def decoded(ids: Sequence[int]) -> str:
    return " ".join(map(str, ids))


def examples(count: int, first: int = 0) -> list[Example]:
    """Prompts that are all different, of different lengths."""
    return [
        Example(
            id=f"row {number}",
            prompt_ids=(10 + number % 900, 11 + number // 900, *range(20, 20 + number % 5)),
            prompt="",
            document="",
            reference="",
        )
        for number in range(first, first + count)
    ]


def sampler_for(
    urls: Sequence[str],
    folder: Path,
    snapshots: Snapshots | None = None,
    drawn: Sequence[Sampling] = (),
    **options: Any,
) -> ClusterSampler:
    nodes = NodesConfig.model_validate(
        {"workers": [{"url": url, "name": f"w{place}"} for place, url in enumerate(urls)], **QUICK, **options}
    )
    return ClusterSampler(
        nodes,
        snapshot=snapshots or Snapshots(folder),
        decode=decoded,
        canary_ids=CANARY,
        stop_ids=(STOP,),
        vocabulary=VOCABULARY,
        model=FINGERPRINT,
        drawn=drawn,
    )


@contextmanager
def cluster(
    folder: Path, *behaviours: Behaviour, snapshots: Snapshots | None = None, **options: Any
) -> Iterator[tuple[ClusterSampler, SimulatedWorkers]]:
    with (
        SimulatedWorkers(*behaviours) as simulated,
        sampler_for(simulated.urls, folder, snapshots, **options) as sampler,
    ):
        yield sampler, simulated


def check_groups(groups: Sequence[Group], asked: Sequence[Example], group_size: int) -> None:
    """Whole, in order, and each an answer to its own prompt: a completion repeats it."""
    assert [group.example for group in groups] == list(asked)
    for group in groups:
        assert len(group.completions) == group_size
        for completion in group.completions:
            body = completion.token_ids[:-1]
            prompt = group.example.prompt_ids
            assert body == tuple(prompt[i % len(prompt)] for i in range(len(body)))
            assert completion.token_ids[-1] == STOP
            assert completion.finish_reason == "stop"
            assert completion.text == decoded(body)
            assert set(completion.logprobs) == {logprob_of(weights_of(completion.policy_version))}


def check_account(sampler: ClusterSampler, delivered: int) -> dict[str, float]:
    """Nothing lost: what was asked was delivered, once."""
    report = dict(sampler.report())
    assert report["cluster/delivered"] == delivered
    assert report["cluster/lost"] == 0
    return report


def until(reached: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits for what another thread does; fails when it does not come."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)

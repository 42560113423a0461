"""Simulated workers in processes of their own, and the simulated policy that is published to them.

What a cluster benchmark stands on: real HTTP on loopback, nothing sampled, so that what is measured is the layer
between the training loop and the workers.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.simulated_faults import STOP, VOCABULARY
from benchmarks.simulated_worker import FINGERPRINT, STARTED_WITH, WEIGHTS, logprob_of
from benchmarks.workload import examples
from cluster.nodes import NodesConfig
from cluster.sampler import ClusterSampler
from cluster.snapshot import Snapshot
from mlx_sumrl.data.example import Example
from mlx_sumrl.errors import UserError

CANARY = tuple(range(10, 42))
ADAPTER_BYTES = 1 << 20
"""Of a version's file: about a LoRA adapter of rank 8 for 0.5B parameters' attention."""


@contextmanager
def simulated_cluster(
    scratch: Path, *processes: Sequence[str], adapter_bytes: int = ADAPTER_BYTES, **options: Any
) -> Iterator[ClusterSampler]:
    """A sampler before simulated workers: for each process the arguments of `benchmarks.simulated_workers`."""
    with ExitStack() as stack:
        started = [stack.enter_context(_process(arguments)) for arguments in processes]
        urls = [url for one in started for url in one]
        nodes = NodesConfig.model_validate({"workers": urls, **options})

        def snapshot(version: int) -> Snapshot:
            folder = scratch / f"v{version}"
            folder.mkdir()
            weights = STARTED_WITH + 0.25 * version
            (folder / WEIGHTS).write_bytes(f"{weights} ".encode().ljust(adapter_bytes, b"0"))
            return Snapshot(version, "adapter", folder, (logprob_of(weights),) * (len(CANARY) - 1))

        with ClusterSampler(
            nodes,
            snapshot=snapshot,
            decode=lambda ids: "",
            canary_ids=CANARY,
            stop_ids=(STOP,),
            vocabulary=VOCABULARY,
            model=FINGERPRINT,
        ) as sampler:
            yield sampler


@contextmanager
def _process(arguments: Sequence[str]) -> Iterator[list[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.simulated_workers", *arguments],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        urls = process.stdout.readline().split()
        if not urls:
            raise UserError("the simulated workers did not start; see what they said above")
        yield urls
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


def made_prompts(count: int, tokens: int) -> list[Example]:
    """Prompts of so many ids, no two alike."""
    return examples([[3 + (number + place) % 900 for place in range(tokens)] for number in range(count)])

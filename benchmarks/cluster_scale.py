"""What does a group cost the trainer, with 1 to 256 workers? ``python -m benchmarks.cluster_scale [--json]``

`ClusterSampler` before simulated workers (real HTTP on loopback, in a process of their own), in two ways. *Cost*: the
workers answer at once, and the CPU time of this process is divided by the groups. *Delivery*: every worker makes a set
number of tokens a second, one request after another, and what arrives is held against the sum of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.command import Report, answered, opened_report, positive
from benchmarks.fresh_process import measured, shown, summary
from benchmarks.simulated_cluster import made_prompts, simulated_cluster
from mlx_sumrl.rollouts.types import Sampling

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
GROUP_SIZE, PROMPT_TOKENS, TOKENS = 8, 200, 64
GROUPS_EACH = 4
"""Groups of a batch for each worker."""
COST_GROUPS = 256
"""Of a batch whose cost is measured, however many workers there are."""
SPEED = 320.0
"""Tokens a second of a worker: a small Mac with a 0.5B model, eight completions at a time."""
LINEAR_TO = 64
AT_LEAST = 0.9
HELD_EQUAL = (
    f"groups of {GROUP_SIZE} completions of {TOKENS} tokens to a prompt of {PROMPT_TOKENS}, one request each",
    f"cost: {COST_GROUPS} groups a batch; CPU time of the sampler's process, its simulated workers not in it",
    f"delivery: {GROUPS_EACH} groups a worker and batch; each worker makes {SPEED:.0f} tokens/s",
    "a fresh process for each number of workers; the first batches, in which speeds are learnt, left out",
)
NOT_EQUAL = (
    "the simulated workers share this machine's cores with the sampler: with many, it is they who are slow",
    "loopback has no latency and no loss",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON object; the exit code."""
    return answered(
        argv,
        module="benchmarks.cluster_scale",
        question=__doc__,
        options=options,
        measure=compare,
        work=work,
        table=table,
    )


def options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for."""
    parser.add_argument("--batches", type=positive, default=3, help="timed batches of each case")
    parser.add_argument("--most", type=positive, default=WORKERS[-1], help="most workers")


def compare(asked: argparse.Namespace) -> Report:
    """Everything measured, as one object. Raises `UserError`."""
    report = opened_report("cluster_scale", HELD_EQUAL, NOT_EQUAL, batches=asked.batches)
    report["cases"] = []
    for workers in (1, 2) if asked.toy else [one for one in WORKERS if one <= asked.most]:
        speed = 16 * SPEED if asked.toy else SPEED
        task = {"workers": workers, "batches": asked.batches, "speed": speed}
        groups = 8 if asked.toy else COST_GROUPS
        report["cases"].append(
            {
                "workers": workers,
                "cost": measured("benchmarks.cluster_scale", {**task, "groups": groups}),
                "delivery": measured("benchmarks.cluster_scale", {**task, "groups": 0}),
            }
        )
    return report


def work(workers: int, batches: int, groups: int, speed: float = SPEED) -> dict[str, Any]:
    """One case, in this process: cost where ``groups`` are said, else delivery."""
    speeds = () if groups else ("--speeds", *[str(speed)] * workers)
    groups = groups or GROUPS_EACH * workers
    asked = made_prompts(groups, PROMPT_TOKENS)
    sampling = Sampling(max_tokens=TOKENS)
    tokens = groups * GROUP_SIZE * TOKENS
    rates, costs, shares = [], [], []
    warm_up = 1
    with tempfile.TemporaryDirectory() as scratch:
        arguments = ("--workers", str(workers), "--tokens", str(TOKENS), *speeds)
        # All workers answer health from one core here, in its turn: late is not lost.
        patient = {"connect_timeout_s": 60.0, "heartbeat_s": 30.0}
        with simulated_cluster(Path(scratch), arguments, adapter_bytes=1 << 12, **patient) as sampler:
            sampler.publish(0)
            for batch in range(warm_up + batches):
                started, used = time.perf_counter(), time.process_time()
                sampler.sample(asked, GROUP_SIZE, sampling, batch)
                seconds, used = time.perf_counter() - started, time.process_time() - used
                rates.append(tokens / seconds)
                costs.append(used / groups)
                shares.append(used / seconds)
            report = sampler.report()
    return {
        "groups": groups,
        "tokens_per_second": summary(rates[warm_up:]),
        "share_of_sum": summary([rate / (speed * workers) for rate in rates[warm_up:]]) if speeds else None,
        "cpu_ms_per_group": summary([1e3 * one for one in costs[warm_up:]]),
        "cpu_share": summary(shares[warm_up:]),
        "requeued": report["cluster/requeued"],
    }


def table(report: Report) -> Table:
    """The report for a person: medians, and in brackets the lowest and the highest."""
    shown_table = Table(
        "workers",
        "CPU ms a group, at once",
        "tokens/s delivered",
        f"of what they make (at least {AT_LEAST} to {LINEAR_TO})",
        "CPU share then",
        title="the trainer's side of a cluster of simulated workers",
    )
    for case in report["cases"]:
        delivery = case["delivery"]
        shown_table.add_row(
            str(case["workers"]),
            shown(case["cost"]["cpu_ms_per_group"], digits=2),
            shown(delivery["tokens_per_second"], digits=0),
            shown(delivery["share_of_sum"], digits=3),
            shown(delivery["cpu_share"], digits=3),
        )
    return shown_table


if __name__ == "__main__":
    sys.exit(main())

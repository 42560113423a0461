"""Does sampling hide behind training, or training behind sampling? ``python -m benchmarks.overlap [--json]``

`ClusterSampler` before simulated workers (real HTTP on loopback, a process each) whose requests take a set
time, and a "trainer" that sleeps for a set time and publishes a version after every step. A step should take as long
as the longer of the two. And: workers of speeds 1, 1 and 0.25 should together deliver what they can.
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

WARM_UP = 2
WORKERS = 2
PROMPTS, GROUP_SIZE, PROMPT_TOKENS, TOKENS = 8, 8, 200, 64
SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0)
SHARES = ((1.0, 1.0), (1.0, 0.5), (0.5, 1.0))
"""Training and sampling, as shares of the longer one."""
STALENESS = (1, 2)
"""With 1, a version has to travel, and its groups to come back, within two steps: where training and sampling take
equally long, and hardly longer than messages do, nothing can hide that. With 2 there is a step to spare."""
SPEEDS = (4000.0, 4000.0, 1000.0)
"""Tokens a second of the unequal workers."""
UNEQUAL_PROMPTS, UNEQUAL_GROUP = 72, 4
AT_MOST = 1.05
AT_LEAST = 0.9
HELD_EQUAL = (
    f"{PROMPTS} prompts of {PROMPT_TOKENS} tokens, {GROUP_SIZE} completions of {TOKENS}, {WORKERS} workers; every "
    "request takes the set time, however many there are",
    "every step publishes a version: 1 MB is hashed, sent to each worker, activated, and a canary is compared",
    f"{WARM_UP} steps of warm-up left out; the trainer sleeps, so both cores are free for this layer and the workers",
)
NOT_EQUAL = (
    "a real trainer computes while it trains, and a real engine takes longer to activate a version",
    "the unequal workers take requests one after another at their speed; nothing is published between",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON object; the exit code."""
    return answered(
        argv,
        module="benchmarks.overlap",
        question=__doc__,
        options=options,
        measure=compare,
        work=work,
        table=table,
    )


def options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for."""
    parser.add_argument("--steps", type=positive, default=None, help="timed steps of each case")
    parser.add_argument(
        "--staleness", type=positive, nargs="+", default=STALENESS, help="max_staleness, in versions"
    )


def compare(asked: argparse.Namespace) -> Report:
    """Everything measured, as one object. Raises `UserError`."""
    report = opened_report("overlap", HELD_EQUAL, NOT_EQUAL)
    report["cases"] = []
    for staleness in asked.staleness[:1] if asked.toy else asked.staleness:
        for seconds in (0.05,) if asked.toy else SECONDS:
            for train, sample in SHARES:
                steps = asked.steps or (3 if asked.toy else max(4, min(40, round(12 / seconds))))
                task = {
                    "train": train * seconds,
                    "sample": sample * seconds,
                    "steps": steps,
                    "max_staleness": staleness,
                }
                report["cases"].append({**task, **measured("benchmarks.overlap", task)})
    report["unequal"] = measured("benchmarks.overlap", {"batches": 3 if asked.toy else 10})
    return report


def work(**task: Any) -> dict[str, Any]:
    """One case, in this process."""
    return _unequal(**task) if "batches" in task else _overlapped(**task)


def _overlapped(train: float, sample: float, steps: int, max_staleness: int) -> dict[str, Any]:
    sampling = Sampling(max_tokens=TOKENS)
    asked = made_prompts(PROMPTS, PROMPT_TOKENS)
    taken, waited, old = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        each = ("--latency", str(sample), "--tokens", str(TOKENS))
        with simulated_cluster(Path(scratch), *[each] * WORKERS, max_staleness=max_staleness) as sampler:
            sampler.publish(0)
            for step in range(WARM_UP + steps):
                started = time.perf_counter()
                for ahead in range(sampler.ahead + 1):  # as the training loop does
                    sampler.prepare(asked, GROUP_SIZE, sampling, step + ahead)
                groups = sampler.sample(asked, GROUP_SIZE, sampling, step)
                report = sampler.report()
                time.sleep(train)
                sampler.publish(step + 1)
                taken.append(time.perf_counter() - started)
                waited.append(report["time/wait"])
                old.append(step - min(group.policy_version for group in groups))
            requeued = sampler.report()["cluster/requeued"]
    longer = max(train, sample)
    return {
        "step": summary(taken[WARM_UP:]),
        "over_longer": summary([one / longer for one in taken[WARM_UP:]]),
        "waited": summary(waited[WARM_UP:]),
        "staleness": summary([float(one) for one in old[WARM_UP:]]),
        "requeued": requeued,
    }


def _unequal(batches: int) -> dict[str, Any]:
    sampling = Sampling(max_tokens=TOKENS)
    asked = made_prompts(UNEQUAL_PROMPTS, PROMPT_TOKENS)
    rates = []
    with tempfile.TemporaryDirectory() as scratch:
        each = [("--speeds", str(speed), "--tokens", str(TOKENS)) for speed in SPEEDS]
        with simulated_cluster(Path(scratch), *each) as sampler:
            sampler.publish(0)
            for batch in range(WARM_UP + batches):
                started = time.perf_counter()
                groups = sampler.sample(asked, UNEQUAL_GROUP, sampling, batch)
                tokens = sum(len(one.token_ids) for group in groups for one in group.completions)
                rates.append(tokens / (time.perf_counter() - started))
            report = sampler.report()
    return {
        "speeds": list(SPEEDS),
        "share_of_sum": summary([rate / sum(SPEEDS) for rate in rates[WARM_UP:]]),
        "hedged": report["cluster/hedged"],
        "duplicates": report["cluster/duplicates"],
    }


def table(report: Report) -> Table:
    """The report for a person: medians, and in brackets the lowest and the highest."""
    shown_table = Table(
        "max_staleness",
        "training s",
        "sampling s",
        "step s",
        f"over the longer (at most {AT_MOST})",
        "trainer idle s",
        "versions old",
        title="a version published every step",
        caption=f"speeds {', '.join(f'{one:.0f}' for one in report['unequal']['speeds'])} tokens/s: "
        f"{shown(report['unequal']['share_of_sum'], digits=3)} of the sum delivered (at least {AT_LEAST})",
    )
    for case in report["cases"]:
        shown_table.add_row(
            str(case["max_staleness"]),
            f"{case['train']:g}",
            f"{case['sample']:g}",
            shown(case["step"], digits=3),
            shown(case["over_longer"], digits=3),
            shown(case["waited"], digits=3),
            shown(case["staleness"], digits=0),
        )
    return shown_table


if __name__ == "__main__":
    sys.exit(main())

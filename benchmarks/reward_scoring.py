"""How long does a training step wait for its scores? ``python -m benchmarks.reward_scoring [--json]``

256 completions of about 64 tokens (32 rows, 8 each) are scored with METEOR and ROUGE-L: in worker processes, as
training does it; in the training thread; and by nltk and rouge-score called directly. Every step has rows of its own.
Then how much of its own work a thread gets done while the processes score beside it, and how long it was ever held up.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nltk.translate.meteor_score import single_meteor_score
from rich.table import Table
from rouge_score.rouge_scorer import RougeScorer

from benchmarks.command import Report, answered, opened_report, positive
from benchmarks.fresh_process import Taken, shown, summary, taken_in_turn
from benchmarks.supervised_rows import DATA
from mlx_sumrl.config import LengthConfig, ScoringConfig, StageConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.data.grammar import make_posts
from mlx_sumrl.errors import UserError
from mlx_sumrl.metrics.meteor import meteor_tokens
from mlx_sumrl.rewards import Scorer, build_rewards
from mlx_sumrl.rollouts.types import Completion, Group

PROCESSES, THREAD, DIRECT = "processes", "training thread", "nltk, rouge-score"
VARIANTS = (PROCESSES, THREAD, DIRECT)
ROWS, TOY_ROWS = 32, 4
COMPLETIONS = 8
WARM, TOY_WARM = 5, 1
"""Steps before those that count: words are looked up in WordNet for the first time."""
STEPS, TOY_STEPS = 15, 3
WORDS = 50
"""About 64 tokens of a language model."""
HELD_EQUAL = (
    "rows, completions, their order, METEOR's tokens; the scores (checked: to 1e-12)",
    f"{COMPLETIONS} completions a row, each made of sentences of its own dialogue and another row's summary, "
    f"{WORDS} words",
    "a fresh process for each measurement, alternating order; each step's texts are new; the first steps do not count",
)
NOT_EQUAL = (
    "the processes have both cores, the others one thread",
    "mlx_sumrl remembers stems and synonyms of words that it has met; nltk and rouge-score do not",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON object; the exit code."""
    return answered(
        argv,
        module="benchmarks.reward_scoring",
        question=__doc__,
        options=options,
        measure=compare,
        work=work,
        table=table,
    )


def options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for."""
    parser.add_argument("--processes", type=positive, default=2, help="worker processes, 2 otherwise")
    parser.add_argument("--repeats", type=positive, default=2, help="processes for each variant, 2 otherwise")
    parser.add_argument("--data", type=Path, help="rows with the columns dialogue and summary")


def compare(asked: argparse.Namespace) -> Report:
    """Everything measured, as one object. Raises `UserError`."""
    data = asked.data or (DATA if DATA.is_file() and not asked.toy else None)
    rows, warm, steps = (TOY_ROWS, TOY_WARM, TOY_STEPS) if asked.toy else (ROWS, WARM, STEPS)
    report = opened_report(
        "reward_scoring",
        HELD_EQUAL,
        NOT_EQUAL,
        data=data.name if data else "made of a small grammar",
        completions=rows * COMPLETIONS,
        warm_steps=warm,
        steps=steps,
        processes=asked.processes,
        repeats=asked.repeats,
    )

    def task(variant: str) -> dict[str, Any]:
        print(variant, file=sys.stderr)
        return {
            "data": str(data) if data else None,
            "rows": rows,
            "warm": warm,
            "steps": steps,
            "processes": asked.processes,
        }

    taken = taken_in_turn("benchmarks.reward_scoring", VARIANTS, asked.repeats, task)
    return report | found(taken)


def found(taken: Taken) -> dict[str, Any]:
    """Of all processes together. Raises `UserError` where they do not agree on the scores."""
    scores = np.array([one["scores"] for results in taken.results.values() for one in results])
    difference = float(np.ptp(scores, axis=0).max())
    if not difference <= 1e-12:
        raise UserError(f"the variants gave scores that differ by up to {difference:.1e}")
    beside = taken.results[PROCESSES]
    return {
        "seconds": {
            variant: summary([second for one in results for second in one["seconds"]])
            for variant, results in taken.results.items()
        },
        "start_s": summary([one["start_s"] for one in beside]),
        "beside": {
            "share_of_idle": summary([share for one in beside for share in one["shares"]]),
            "longest_pause_s": summary([pause for one in beside for pause in one["pauses"]]),
            "longest_pause_idle_s": summary([one["idle_pause"] for one in beside]),
        },
        "score_difference": difference,
        "load": list(taken.load),
    }


def work(variant: str, data: str | None, rows: int, warm: int, steps: int, processes: int) -> dict[str, Any]:
    """Seconds of each step that counts, and its first row's scores, in this process."""
    batches = made_groups(data, rows, 2 * steps + warm)
    if variant == DIRECT:
        scorer = RougeScorer(["rougeL"], use_stemmer=True)
        return timed(lambda groups: direct(scorer, groups), batches[: warm + steps], warm)
    stage = {"name": "s", "steps": 1, "rewards": [{"kind": "meteor"}, {"kind": "rougeL"}]}
    rewards = build_rewards(StageConfig.model_validate(stage), LengthConfig())
    begun = time.perf_counter()
    scoring = ScoringConfig(processes=processes if variant == PROCESSES else 0)
    with Scorer(rewards, scoring) as scored:
        scored.scores(batches[0][:1])
        started = time.perf_counter() - begun

        def components(groups: Sequence[Group]) -> np.ndarray[Any, np.dtype[np.float64]]:
            return np.stack([*scored.scores(groups).components.values()])

        result = timed(components, batches[: warm + steps], warm)
        if variant == PROCESSES:
            result |= {"start_s": started, **beside(scored, batches[warm + steps :])}
    return result


def timed(
    score: Callable[[Sequence[Group]], np.ndarray[Any, np.dtype[np.float64]]],
    batches: Sequence[Sequence[Group]],
    warm: int,
) -> dict[str, Any]:
    """Seconds of each step after the first ``warm``; the last step's scores."""
    seconds = []
    for groups in batches:
        begun = time.perf_counter()
        scores = score(groups)
        seconds.append(time.perf_counter() - begun)
    return {"seconds": seconds[warm:], "scores": scores.ravel().tolist()}


def direct(scorer: RougeScorer, groups: Sequence[Group]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What someone would write who has nltk and rouge-score: shape [2, P, G]."""
    return np.array(
        [
            [
                [
                    single_meteor_score(meteor_tokens(group.example.reference), meteor_tokens(one.text))
                    for one in group.completions
                ]
                for group in groups
            ],
            [
                [
                    scorer.score(group.example.reference, one.text)["rougeL"].fmeasure
                    for one in group.completions
                ]
                for group in groups
            ],
        ]
    )


def beside(scorer: Scorer, batches: Sequence[Sequence[Group]]) -> dict[str, Any]:
    """How fast this thread counts while a step's groups are scored, as a share of its speed with nothing beside it,
    measured just before; and the longest time (s) between two of its turns, beside and idle."""
    shares, pauses, idle_pauses = [], [], []
    for groups in batches:
        idle, pause = counted(lambda at: at < 0.2)
        idle_pauses.append(pause)
        for group in groups:
            scorer.begin(group)
        futures = scorer.under_way()
        busy, pause = counted(lambda at: not all(one.done() for one in futures))  # noqa: B023  (called at once)
        scorer.scores(groups)
        shares.append(busy / idle)
        pauses.append(pause)
    return {"shares": shares, "pauses": pauses, "idle_pause": max(idle_pauses)}


def counted(goes_on: Callable[[float], bool]) -> tuple[float, float]:
    """Turns a second of a thread that does some Python and some numpy, and its longest turn in seconds."""
    matrix = np.ones((32, 32))
    begun = last = time.perf_counter()
    turns, longest = 0, 0.0
    while goes_on(last - begun):
        for _ in range(20):
            matrix = np.minimum(matrix @ matrix, 1.0)
        now = time.perf_counter()
        longest, last, turns = max(longest, now - last), now, turns + 1
    return turns / (last - begun), longest


def made_groups(data: str | None, rows: int, batches: int) -> list[list[Group]]:
    """Rows with a dialogue and a summary, and completions made of them. Raises `UserError` for too few rows."""
    if data is None:
        posts, _ = make_posts(rows * batches, 0, seed=0)
        pairs = [(post["document"], post["summary"]) for post in posts]
    else:
        with Path(data).open(encoding="utf-8") as lines:
            fields = [json.loads(line) for _, line in zip(range(rows * batches), lines, strict=False)]
        pairs = [(one["dialogue"], one["summary"]) for one in fields]
    if len(pairs) < rows * batches:
        raise UserError(f"{data} has {len(pairs)} rows, and {rows * batches} are needed")
    made = []
    for at, (document, reference) in enumerate(pairs):
        said = document.split()
        others = [pairs[(at + 1 + g) % len(pairs)][1] for g in range(COMPLETIONS)]
        texts = [
            " ".join([*said[g * len(said) // COMPLETIONS :][: WORDS // 2], *other.split()][:WORDS])
            for g, other in enumerate(others)
        ]
        completions = tuple(Completion((1, 0), (0.0, 0.0), "stop", 0, text) for text in texts)
        made.append(Group(Example(str(at), (1,), "", document, reference), completions))
    return [made[start : start + rows] for start in range(0, len(made), rows)]


def table(report: Report) -> Table:
    """For a person: medians, and in brackets the lowest and the highest."""
    low, high = report["load"]
    share, pause = report["beside"]["share_of_idle"], report["beside"]["longest_pause_s"]
    idle = report["beside"]["longest_pause_idle_s"]
    shown_table = Table(
        "",
        "seconds a step",
        "completions/s",
        title=f"{report['completions']} completions, METEOR and ROUGE-L, {report['data']}",
        caption=f"{report['processes']} processes start in {shown(report['start_s'])} s, beside the first rollout; "
        f"while they score, another thread does {shown(share, 100, 0)} % of its idle work and is held up for "
        f"{shown(pause, 1e3, 0)} ms at most (idle {shown(idle, 1e3, 0)}); machine's load meanwhile {low} to {high}",
        title_justify="left",
    )
    for variant, numbers in report["seconds"].items():
        rate = report["completions"] / numbers["median"]
        shown_table.add_row(variant, shown(numbers, digits=3), f"{rate:,.0f}")
    return shown_table


if __name__ == "__main__":
    sys.exit(main())

"""How long does a GRPO step take, and how much memory? ``python -m benchmarks.grpo_step [--json]``

Rollout, training and the whole step of mlx_sumrl against mlx-lm-lora, each in a fresh process, in alternating
order, on the same model folder, prompts and lengths. The peak is that of the whole step, rollout included: it is
reset where a step starts and nowhere else.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from benchmarks.command import Report, answered, opened_report, positive
from benchmarks.fresh_process import shown, summaries, taken_in_turn
from benchmarks.own_steps import Tuning, trained_steps
from benchmarks.peer import PACKAGE, peer_steps, require_peer
from benchmarks.workload import Model, examples, make_model, prompts
from mlx_sumrl.errors import UserError

OURS, PEER, PEER_WIDE = "mlx_sumrl", "mlx-lm-lora", "mlx-lm-lora, wide"
VARIANTS = (OURS, PEER, PEER_WIDE)
TUNINGS = ("lora", "full")
RANK, ALPHA, LEARNING_RATE = 8, 16.0, 1e-5
WARM_UP = 2
QUANTITIES = ("step", "rollout", "train", "peak")


@dataclass(frozen=True)
class Case:
    """The size of a step."""

    prompts: int
    group_size: int
    prompt_tokens: int
    vocabulary: int = 4096
    new_tokens: int = 64

    @property
    def title(self) -> str:
        """In few words."""
        return (
            f"{self.prompts} x {self.group_size} completions of {self.new_tokens}, "
            f"{self.prompt_tokens} prompt tokens, vocabulary {self.vocabulary:,}"
        )


CASES = (Case(2, 4, 113), Case(1, 8, 645), Case(2, 4, 423, vocabulary=32_000))
TOY = (Case(2, 2, 12, vocabulary=512, new_tokens=4),)
HELD_EQUAL = (
    "model folder (random Qwen2, hidden 256, 4 layers, 8 heads of which 2 for keys and values), float32, same BLAS",
    "prompts as token ids; every completion has exactly the tokens asked for (no stop token for either side)",
    "prompts and completions per step, reward function, loss kind grpo, clip at 0.2, no KL and no reference",
    f"temperature 1 and no filter; LoRA of rank {RANK} on all linear layers of all blocks, or every weight",
    f"AdamW, learning rate {LEARNING_RATE}, the same betas, bias correction, no weight decay; one update per rollout",
    f"a fresh process for each measurement, alternating order, {WARM_UP} steps of warm-up left out",
    "memory: the peak over the whole step, in bytes that MLX has allocated",
)
NOT_EQUAL = (
    "mlx_sumrl also writes down the sampler's log-probabilities, takes its ratio from them, clips the gradient and "
    "measures what arrives of an update; mlx-lm-lora does none of these",
    "mlx_sumrl trains with policy.gradient_checkpointing, and so computes each block's forward pass twice; mlx-lm-lora "
    "runs without its own, as it comes",
    "mlx-lm-lora decodes, and trains on, as many completions at once as a step has prompts, which no setting of it "
    "changes; 'wide' is the same code with both limits raised to all completions of a step",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON object; the exit code."""
    return answered(
        argv,
        module="benchmarks.grpo_step",
        question=__doc__,
        options=options,
        measure=compare,
        work=work,
        table=table,
    )


def options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for."""
    parser.add_argument("--steps", type=positive, default=5, help="timed steps in each process")
    parser.add_argument("--repeats", type=positive, default=2, help="processes for each variant")
    parser.add_argument("--case", type=int, choices=range(1, len(CASES) + 1), help="only this one")
    parser.add_argument("--tuning", choices=TUNINGS, help="only this one")


def compare(asked: argparse.Namespace) -> Report:
    """Everything measured, as one object. Raises `UserError`."""
    require_peer()
    cases = TOY if asked.toy else CASES if asked.case is None else CASES[asked.case - 1 :][:1]
    report = opened_report(
        "grpo_step", HELD_EQUAL, NOT_EQUAL, steps=asked.steps, repeats=asked.repeats, cases=[]
    )
    report["machine"]["mlx_lm_lora"] = importlib.metadata.version(PACKAGE)
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases:
            folder = Path(scratch) / str(case.vocabulary)
            if not folder.is_dir():
                make_model(folder, Model(vocabulary=case.vocabulary))
            for tuning in (asked.tuning,) if asked.tuning else TUNINGS:
                report["cases"].append(compare_case(case, tuning, folder, asked.steps, asked.repeats))
    return report


def compare_case(case: Case, tuning: str, folder: Path, steps: int, repeats: int) -> dict[str, Any]:
    """All variants on one case."""

    def task(variant: str) -> dict[str, Any]:
        print(f"{case.title}, {tuning}: {variant}", file=sys.stderr)  # a long wait says what it waits for
        return {"folder": str(folder), "case": asdict(case), "tuning": tuning, "steps": steps}

    taken = taken_in_turn("benchmarks.grpo_step", VARIANTS, repeats, task)
    wanted = case.prompts * case.group_size * case.new_tokens
    variants = {}
    for variant, results in taken.results.items():
        for result in results:
            if result["tokens"] != wanted:
                raise UserError(f"{variant} trained on {result['tokens']} tokens a step, not {wanted}")
        timed = [step for result in results for step in result["steps"][WARM_UP:]]
        variants[variant] = summaries(timed, QUANTITIES)
    ratios = {
        peer: {name: variants[peer][name]["median"] / variants[OURS][name]["median"] for name in QUANTITIES}
        for peer in VARIANTS[1:]
    }
    return {
        "case": asdict(case),
        "title": case.title,
        "tuning": tuning,
        "variants": variants,
        "peer_over_ours": ratios,
        "load": list(taken.load),
    }


def work(variant: str, folder: str, case: dict[str, int], tuning: Tuning, steps: int) -> dict[str, Any]:
    """One variant's steps, warm-up included, in this process."""
    size = Case(**case)
    ids = prompts(size.prompts, size.prompt_tokens, size.vocabulary)
    asked: dict[str, Any] = {
        "group_size": size.group_size,
        "new_tokens": size.new_tokens,
        "tuning": tuning,
        "rank": RANK,
        "alpha": ALPHA,
        "learning_rate": LEARNING_RATE,
        "steps": WARM_UP + steps,
    }
    if variant == OURS:
        taken, tokens = trained_steps(folder, examples(ids), checkpointing=True, **asked)
    else:
        taken, tokens = peer_steps(folder, ids, wide=variant == PEER_WIDE, **asked)
    return {"steps": taken, "tokens": tokens}


def table(report: Report) -> Group:
    """The report for a person: medians, in brackets the lowest and the highest, and times ours."""
    return Group(*(_case_table(case) for case in report["cases"]))


def _case_table(case: dict[str, Any]) -> Table:
    low, high = case["load"]
    shown_table = Table(
        "",
        "step s",
        "rollout s",
        "train s",
        "peak MB",
        title=f"{case['title']}, {case['tuning']}",
        caption=f"machine's load meanwhile {low} to {high}",
        title_justify="left",
    )
    for variant, numbers in case["variants"].items():
        ratios = case["peer_over_ours"].get(variant, {})
        cells = [
            shown(numbers[name], scale, digits) + (f"\n{ratios[name]:.2f} x" if ratios else "")
            for name, scale, digits in (("step", 1, 3), ("rollout", 1, 3), ("train", 1, 3), ("peak", 1e-6, 0))
        ]
        shown_table.add_row(variant, *cells)
    return shown_table


if __name__ == "__main__":
    sys.exit(main())

"""How long does a GRPO step take, and how much memory? ``python -m benchmarks.grpo_step [--json]``

Rollout, training and the whole step of mlx_sumrl against mlx-lm-lora, each in a fresh process, in alternating
order, on the same model folder, prompts and lengths. The peak is that of the whole step, rollout included: it is
reset where a step starts and nowhere else.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from benchmarks.fresh_process import alternating, closing_lines, deliver, machine, measured, shown, summary
from benchmarks.own_steps import Tuning, trained_steps
from benchmarks.peer import PACKAGE, peer_steps, require_peer
from benchmarks.workload import Model, examples, make_model, prompts
from mlx_sumrl.errors import UserError

OURS, PEER, PEER_WIDE = "mlx_sumrl", "mlx-lm-lora", "mlx-lm-lora, wide"
VARIANTS = (OURS, PEER, PEER_WIDE)
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
    "mlx-lm-lora decodes, and trains on, as many completions at once as a step has prompts, which no setting of it "
    "changes; 'wide' is the same code with both limits raised to all completions of a step",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON object; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.grpo_step", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--steps", type=int, default=5, help="timed steps in each process")
    parser.add_argument("--repeats", type=int, default=2, help="processes for each variant")
    parser.add_argument("--case", type=int, choices=range(1, len(CASES) + 1), help="only this one")
    parser.add_argument("--tuning", choices=("lora", "full"), help="only this one")
    parser.add_argument("--toy", action="store_true", help="a case of no size, to see that all works")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        deliver(work(**json.loads(arguments.worker)))
        return 0

    cases = TOY if arguments.toy else CASES if arguments.case is None else CASES[arguments.case - 1 :][:1]
    tunings = (arguments.tuning,) if arguments.tuning else ("lora", "full")
    try:
        require_peer()
        report = compare(cases, tunings, max(arguments.steps, 1), max(arguments.repeats, 1))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        console = Console()
        console.print(table(report))
        for line in closing_lines(report):
            console.print(line, highlight=False, markup=False)
    return 0


def compare(cases: Sequence[Case], tunings: Sequence[str], steps: int, repeats: int) -> dict[str, Any]:
    """Everything measured, as one object."""
    report: dict[str, Any] = {
        "benchmark": "grpo_step",
        "machine": machine() | {"mlx_lm_lora": importlib.metadata.version(PACKAGE)},
        "held_equal": list(HELD_EQUAL),
        "not_equal": list(NOT_EQUAL),
        "steps": steps,
        "repeats": repeats,
        "cases": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases:
            folder = Path(scratch) / str(case.vocabulary)
            if not folder.is_dir():
                make_model(folder, Model(vocabulary=case.vocabulary))
            for tuning in tunings:
                report["cases"].append(compare_case(case, tuning, folder, steps, repeats))
    return report


def compare_case(case: Case, tuning: str, folder: Path, steps: int, repeats: int) -> dict[str, Any]:
    """All variants on one case."""
    taken: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    loads = []
    for variant in alternating(VARIANTS, repeats):
        task = {
            "variant": variant,
            "folder": str(folder),
            "case": asdict(case),
            "tuning": tuning,
            "steps": steps,
        }
        print(f"{case.title}, {tuning}: {variant}", file=sys.stderr)  # a long wait says what it waits for
        result = measured("benchmarks.grpo_step", task)
        wanted = case.prompts * case.group_size * case.new_tokens
        if result["tokens"] != wanted:
            raise UserError(f"{variant} trained on {result['tokens']} tokens a step, not {wanted}")
        taken[variant] += result["steps"][WARM_UP:]
        loads.append(round(os.getloadavg()[0], 2))
    variants = {
        variant: {name: summary([one[name] for one in taken[variant]]) for name in QUANTITIES}
        for variant in VARIANTS
    }
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
        "load": [min(loads), max(loads)],
    }


def work(variant: str, folder: str, case: dict[str, int], tuning: Tuning, steps: int) -> dict[str, Any]:
    """One variant's steps, warm-up included, in this process."""
    size = Case(**case)
    ids = prompts(size.prompts, size.prompt_tokens, size.vocabulary)
    if variant == OURS:
        taken, tokens = trained_steps(
            folder,
            examples(ids),
            group_size=size.group_size,
            new_tokens=size.new_tokens,
            tuning=tuning,
            rank=RANK,
            alpha=ALPHA,
            learning_rate=LEARNING_RATE,
            steps=WARM_UP + steps,
        )
    else:
        taken, tokens = peer_steps(
            folder,
            ids,
            group_size=size.group_size,
            new_tokens=size.new_tokens,
            tuning=tuning,
            rank=RANK,
            alpha=ALPHA,
            learning_rate=LEARNING_RATE,
            steps=WARM_UP + steps,
            wide=variant == PEER_WIDE,
        )
    return {"steps": taken, "tokens": tokens}


def table(report: dict[str, Any]) -> Group:
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

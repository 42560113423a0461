"""How do a step's time and memory grow? ``python -m benchmarks.scaling [--json]``

One size at a time is changed from a base case: group size, prompt length, completion length, vocabulary. Each
case runs in a fresh process; the rate of matrix products is measured there too, and the step's own products are
counted, so that what is not products (exp, softmax, launching kernels) shows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.fresh_process import closing_lines, deliver, machine, measured, shown, summary
from benchmarks.own_steps import trained_steps
from benchmarks.workload import Model, examples, make_model, prompts
from mlx_sumrl.errors import UserError

WARM_UP = 2
MATRIX = 768
MATRIX_SECONDS = 0.5
RANK, ALPHA, LEARNING_RATE = 8, 16.0, 1e-5
HELD_EQUAL = (
    "random Qwen2 (hidden 256, 4 layers), float32, every weight trained, two prompts a step, one update",
    "every completion has exactly the tokens asked for; all but the one size named are those of the base",
    f"a fresh process for each case, {WARM_UP} steps of warm-up left out; the peak is that of the whole step",
)
NOT_EQUAL = (
    "the products counted are those of weights and of attention; the rate is that of 768 x 768 matrices, which the "
    "small products of a decoding step cannot reach",
)


@dataclass(frozen=True)
class Size:
    """The size of a step."""

    group_size: int = 4
    prompt_tokens: int = 128
    new_tokens: int = 64
    vocabulary: int = 4096
    prompts: int = 2

    def gflop(self, model: Model) -> float:
        """10^9 operations in the matrix products of a step: rollout, forward pass, and backward twice that.

        The prompt is computed once for its group in both; the head reads completion tokens only, and its part of
        the forward pass is done again in the backward pass.
        """
        rows = self.prompts * self.group_size
        made = rows * self.new_tokens
        read = self.prompts * self.prompt_tokens + made
        # Scores and their product with the values: 2 x 2 x hidden for each token looked at.
        looked_at = self.prompts * self.prompt_tokens**2 + made * (self.prompt_tokens + self.new_tokens)
        blocks = 2 * model.block_parameters * read + 4 * model.hidden * model.layers * looked_at
        head = 2 * model.hidden * self.vocabulary * made
        return (blocks + head + 3 * blocks + 4 * head) / 1e9


BASE = Size()
AXES: dict[str, tuple[int, ...]] = {
    "group_size": (2, 4, 8, 16),
    "prompt_tokens": (64, 128, 256, 512),
    "new_tokens": (32, 64, 128),
    "vocabulary": (1024, 4096, 16_384, 32_000),
}
TOY_BASE = Size(group_size=2, prompt_tokens=8, new_tokens=4, vocabulary=512)
TOY_AXES: dict[str, tuple[int, ...]] = {"group_size": (2, 3)}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON object; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--steps", type=int, default=3, help="timed steps in each process")
    parser.add_argument("--axis", choices=tuple(AXES), help="change only this one")
    parser.add_argument("--toy", action="store_true", help="cases of no size, to see that all works")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        deliver(work(**json.loads(arguments.worker)))
        return 0
    base, axes = (TOY_BASE, TOY_AXES) if arguments.toy else (BASE, AXES)
    if arguments.axis and not arguments.toy:
        axes = {arguments.axis: axes[arguments.axis]}
    try:
        report = grow(base, axes, max(arguments.steps, 1))
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


def grow(base: Size, axes: dict[str, tuple[int, ...]], steps: int) -> dict[str, Any]:
    """Everything measured, as one object; a case that several axes share is measured once."""
    report: dict[str, Any] = {
        "benchmark": "scaling",
        "machine": machine(),
        "held_equal": list(HELD_EQUAL),
        "not_equal": list(NOT_EQUAL),
        "base": asdict(base),
        "steps": steps,
        "cases": [],
    }
    known: dict[Size, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for axis, values in axes.items():
            for value in values:
                size = replace(base, **{axis: value})
                if size not in known:
                    folder = Path(scratch) / str(size.vocabulary)
                    if not folder.is_dir():
                        make_model(folder, Model(vocabulary=size.vocabulary))
                    known[size] = _case(size, folder, steps)
                report["cases"].append({"axis": axis, "value": value, **known[size]})
    return report


def _case(size: Size, folder: Path, steps: int) -> dict[str, Any]:
    task = {"folder": str(folder), "size": asdict(size), "steps": steps}
    result = measured("benchmarks.scaling", task)
    taken = result["steps"][WARM_UP:]
    numbers: dict[str, Any] = {
        name: summary([one[name] for one in taken]) for name in ("step", "rollout", "train", "peak")
    }
    gflop = size.gflop(Model(vocabulary=size.vocabulary))
    seconds_of_products = gflop / result["gflops"]
    return {
        **numbers,
        "gflop": gflop,
        "matmul_gflops": result["gflops"],
        "share_of_products": seconds_of_products / numbers["step"]["median"],
        "load": round(os.getloadavg()[0], 2),
    }


def work(folder: str, size: dict[str, int], steps: int) -> dict[str, Any]:
    """The steps of one case, warm-up included, and the rate of matrix products, in this process."""
    case = Size(**size)
    taken, _ = trained_steps(
        folder,
        examples(prompts(case.prompts, case.prompt_tokens, case.vocabulary)),
        group_size=case.group_size,
        new_tokens=case.new_tokens,
        tuning="full",
        rank=RANK,
        alpha=ALPHA,
        learning_rate=LEARNING_RATE,
        steps=WARM_UP + steps,
    )
    return {"steps": taken, "gflops": matmul_gflops()}


def matmul_gflops() -> float:
    """10^9 operations a second in float32 products of 768 x 768 matrices; the best of half a second."""
    import mlx.core as mx

    a, b = mx.random.normal((MATRIX, MATRIX)), mx.random.normal((MATRIX, MATRIX))
    mx.eval(a, b, a @ b)
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < MATRIX_SECONDS:
        start = time.perf_counter()
        mx.eval(a @ b)
        best = min(best, time.perf_counter() - start)
    return 2 * MATRIX**3 / best / 1e9


def table(report: dict[str, Any]) -> Table:
    """The report for a person: medians, and in brackets the lowest and the highest."""
    base = report["base"]
    shown_table = Table(
        "changed",
        "step s",
        "rollout s",
        "train s",
        "peak MB",
        "GFLOP",
        "products",
        title=f"Base: {base['prompts']} x {base['group_size']} completions of {base['new_tokens']}, "
        f"{base['prompt_tokens']} prompt tokens, vocabulary {base['vocabulary']:,}",
        caption="products: the share of a step that its matrix products take at the rate measured beside it",
    )
    last = None
    for case in report["cases"]:
        if last not in (None, case["axis"]):
            shown_table.add_section()
        last = case["axis"]
        shown_table.add_row(
            f"{case['axis']} {case['value']:,}",
            shown(case["step"]),
            shown(case["rollout"]),
            shown(case["train"]),
            shown(case["peak"], 1e-6, 0),
            f"{case['gflop']:.1f}",
            f"{case['share_of_products']:.0%} of {case['matmul_gflops']:.0f} GFLOP/s",
        )
    return shown_table


if __name__ == "__main__":
    sys.exit(main())

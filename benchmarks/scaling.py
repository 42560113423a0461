"""How do a step's time and memory grow? ``python -m benchmarks.scaling [--json]``

One size at a time is changed from a base case: group size, prompt length, completion length, vocabulary. Each
case runs in a fresh process; the rate of matrix products is measured there too, and the step's own products are
counted, so that what is not products (exp, softmax, launching kernels) shows.

``--utilisation``: only how near the training of one larger step comes to the rate of products alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Column, Table

from benchmarks.command import Report, answered, opened_report, positive
from benchmarks.fresh_process import load_now, measured, shown, summaries
from benchmarks.own_steps import trained_steps
from benchmarks.products import Size, least_training_gflop, product_rates, rollout_gflop, training_gflop
from benchmarks.workload import Model, examples, make_model, prompts

WARM_UP = 2
RATE_SECONDS = 0.5
RANK, ALPHA, LEARNING_RATE = 8, 16.0, 1e-5
QUANTITIES = ("step", "rollout", "train", "peak")
HELD_EQUAL = (
    "random Qwen2 (hidden 256, 4 layers), float32, every weight trained, two prompts a step, one update",
    "every completion has exactly the tokens asked for; all but the one size named are those of the base",
    f"a fresh process for each case, {WARM_UP} steps of warm-up left out; the peak is that of the whole step",
)
NOT_EQUAL = (
    "the products counted are those of weights and of attention; the rate is that of 768 x 768 matrices, which the "
    "small products of a decoding step cannot reach",
    "utilisation: the step is of another model (hidden 512, 8 layers), only the products it cannot do without count, "
    "and its train phase is all but the rollout (scoring, gradient, clipping, update); the rate is that of "
    "2,048 x 2,048 matrices, before and after the steps in the same process",
)


@dataclass(frozen=True)
class Case:
    """A step of a model, and the matrices beside it."""

    size: Size
    model: Model
    matrix: int = 768
    """Side of the matrices whose product is timed."""


BASE = Size()
AXES: dict[str, tuple[int, ...]] = {
    "group_size": (2, 4, 8, 16),
    "prompt_tokens": (64, 128, 256, 512),
    "new_tokens": (32, 64, 128),
    "vocabulary": (1024, 4096, 16_384, 32_000),
}
UTILISED = Case(
    Size(group_size=8, prompt_tokens=320, new_tokens=64, vocabulary=8192),
    Model(vocabulary=8192, hidden=512, layers=8),
    matrix=2048,
)
TOY_BASE = Size(group_size=2, prompt_tokens=8, new_tokens=4, vocabulary=512)
TOY_AXES: dict[str, tuple[int, ...]] = {"group_size": (2, 3)}
TOY_UTILISED = Case(TOY_BASE, Model(vocabulary=512, hidden=64, layers=2), matrix=128)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, or one JSON object; the exit code."""
    return answered(
        argv,
        module="benchmarks.scaling",
        question=__doc__,
        options=options,
        measure=measure,
        work=work,
        table=tables,
    )


def options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for."""
    parser.add_argument("--steps", type=positive, default=3, help="timed steps in each process")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--axis", choices=tuple(AXES), help="change only this one")
    only.add_argument("--utilisation", action="store_true", help="only how near training comes to products")


def measure(asked: argparse.Namespace) -> Report:
    """Everything measured, as one object. Raises `UserError`."""
    base, axes = (TOY_BASE, TOY_AXES) if asked.toy else (BASE, AXES)
    if asked.axis and not asked.toy:
        axes = {asked.axis: axes[asked.axis]}
    report = opened_report(
        "scaling", HELD_EQUAL, NOT_EQUAL, base=asdict(base), steps=asked.steps, cases=[], utilisation=None
    )
    with tempfile.TemporaryDirectory() as scratch:
        if not asked.utilisation:
            report["cases"] = grow(base, axes, asked.steps, Path(scratch))
        if not asked.axis:
            utilised = TOY_UTILISED if asked.toy else UTILISED
            report["utilisation"] = utilisation(utilised, asked.steps, Path(scratch))
    return report


def grow(base: Size, axes: dict[str, tuple[int, ...]], steps: int, scratch: Path) -> list[dict[str, Any]]:
    """Each case along each axis; one that several axes share is measured once."""
    cases = []
    known: dict[Size, dict[str, Any]] = {}
    for axis, values in axes.items():
        for value in values:
            size = replace(base, **{axis: value})
            if size not in known:
                known[size] = _grown(Case(size, size.model()), steps, scratch)
            cases.append({"axis": axis, "value": value, **known[size]})
    return cases


def utilisation(case: Case, steps: int, scratch: Path) -> dict[str, Any]:
    """Operations of the least work over the seconds of training, as a share of what products alone reach."""
    result = _measured(case, steps, scratch)
    train = result["numbers"]["train"]
    gflop = least_training_gflop(case.size, case.model)
    reached = gflop / train["median"]
    best, median = max(result["rates"]), statistics.median(result["rates"])
    return {
        "size": asdict(case.size),
        "model": asdict(case.model) | {"parameters": case.model.parameters},
        "train": train,
        "least_gflop": gflop,
        "gflops": reached,
        "matrix": case.matrix,
        "matmul_gflops": {"best": best, "median": median, "n": len(result["rates"])},
        "share_of_best": reached / best,
        "share_of_median": reached / median,
        "load": result["load"],
    }


def _grown(case: Case, steps: int, scratch: Path) -> dict[str, Any]:
    result = _measured(case, steps, scratch)
    numbers, rate = result["numbers"], max(result["rates"])
    train = training_gflop(case.size, case.model)
    whole = train + rollout_gflop(case.size, case.model)
    return {
        **numbers,
        "gflop": whole,
        "train_gflop": train,
        "matmul_gflops": rate,
        "share_of_products": whole / rate / numbers["step"]["median"],
        "train_share_of_products": train / rate / numbers["train"]["median"],
        "load": result["load"],
    }


def _measured(case: Case, steps: int, scratch: Path) -> dict[str, Any]:
    model = case.model
    folder = scratch / f"{model.hidden}-{model.layers}-{model.vocabulary}"
    if not folder.is_dir():
        make_model(folder, model)
    task = {"folder": str(folder), "size": asdict(case.size), "steps": steps, "matrix": case.matrix}
    result = measured("benchmarks.scaling", task)
    numbers = summaries(result["steps"][WARM_UP:], QUANTITIES)
    return {"numbers": numbers, "rates": result["rates"], "load": load_now()}


def work(folder: str, size: dict[str, int], steps: int, matrix: int) -> dict[str, Any]:
    """The steps of one case, warm-up included, and the rates of products before and after, in this process."""
    case = Size(**size)
    before = product_rates(matrix, RATE_SECONDS)
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
        checkpointing=False,
    )
    return {"steps": taken, "rates": before + product_rates(matrix, RATE_SECONDS)}


def tables(report: Report) -> Group:
    """The report for a person: medians, and in brackets the lowest and the highest."""
    grown = [growth_table(report)] if report["cases"] else []
    return Group(*grown, *([utilisation_table(report["utilisation"])] if report["utilisation"] else []))


def growth_table(report: Report) -> Table:
    """A line for each case."""
    base = report["base"]
    names = ("changed", "step s", "rollout s", "train s", "peak MB", "GFLOP", "products", "of train")
    shown_table = Table(
        *(Column(name, overflow="fold") for name in names),
        title=f"Base: {base['prompts']} x {base['group_size']} completions of {base['new_tokens']}, "
        f"{base['prompt_tokens']} prompt tokens, vocabulary {base['vocabulary']:,}",
        caption="products: the share of a step that its matrix products take at the rate measured beside it; "
        "of train: the same of its train phase alone",
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
            f"{case['train_share_of_products']:.0%}",
        )
    return shown_table


def utilisation_table(utilised: dict[str, Any]) -> Table:
    """One line."""
    size, model, rate = utilised["size"], utilised["model"], utilised["matmul_gflops"]
    shown_table = Table(
        "train s",
        "least GFLOP",
        "GFLOP/s",
        "of the best product",
        "of the median product",
        title=f"Utilisation in training: hidden {model['hidden']}, {model['layers']} layers, vocabulary "
        f"{size['vocabulary']:,}, {size['prompts']} x {size['group_size']} completions of {size['new_tokens']}, "
        f"{size['prompt_tokens']} prompt tokens",
        caption=f"machine's load afterwards {utilised['load']}",
    )
    shown_table.add_row(
        shown(utilised["train"]),
        f"{utilised['least_gflop']:.1f}",
        f"{utilised['gflops']:.0f}",
        f"{utilised['share_of_best']:.0%} of {rate['best']:.0f} GFLOP/s",
        f"{utilised['share_of_median']:.0%} of {rate['median']:.0f} GFLOP/s",
    )
    return shown_table


if __name__ == "__main__":
    sys.exit(main())

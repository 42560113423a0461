"""How many tokens a second does supervised fine-tuning take in? ``python -m benchmarks.sft_throughput [--json]``

mlx_sumrl's SFT against mlx_lm.lora's own trainer, each in a fresh process, in alternating order, on the same
model, rows and batches, with adapters and with every weight, in batches of 4, 8 and 16 rows. Useful tokens are
those of prompt and answer, padding left out. mlx-lm compiles its step anew for each width of a batch, so all
batches are gone through twice: the second pass is what counts, the first is shown beside it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from benchmarks.command import Report, answered, opened_report, positive
from benchmarks.fresh_process import Taken, shown, summary, taken_in_turn
from benchmarks.sft_steps import (
    ALPHA,
    BETAS,
    LEARNING_RATE,
    RANK,
    Tuning,
    held_loss,
    own_sft_steps,
    peer_sft_steps,
)
from benchmarks.supervised_rows import SupervisedRow, made_source, read, source, tokenised, write
from mlx_sumrl.errors import UserError

OURS, PEER = "mlx_sumrl", "mlx_lm.lora"
VARIANTS = (OURS, PEER)
TUNINGS = ("lora", "full")
BATCH_SIZES, TOY_BATCH_SIZES = (4, 8, 16), (2,)
BATCHES, TOY_BATCHES = 8, 3
HELD, TOY_HELD = 64, 4
PASSES = 2
TOLERANCE, FLOOR = 0.01, 1e-6
"""The held losses may differ by this share of what training changed, or by this many nats per answer token."""
HELD_EQUAL = (
    "model folder, float32, same BLAS; the rows' token ids, tokenised once; the same rows in the same batches in the "
    "same order, twice; no checkpointing of layers",
    "the loss: mean over the answer tokens of the batch, stop token included, prompt and padding left out (checked: "
    "the tokens trained on are as many for both)",
    f"LoRA of rank {RANK}, scale {ALPHA / RANK:g}, on all linear layers of all blocks from the same first numbers; "
    "or every weight, embeddings too",
    f"AdamW, learning rate {LEARNING_RATE:g}, betas {BETAS[0]} and {BETAS[1]}, bias correction, no weight decay, "
    "nothing clipped",
    f"in the end the same model (checked: the loss on held rows, by one function, differs by at most {TOLERANCE:.0%} "
    f"of what training changed, or by {FLOOR:g} nats a token)",
    "a fresh process for each measurement, alternating order; a step is all from asking for its rows to asking for "
    "the next; the peak is that of whole steps, in bytes that MLX has allocated",
)
NOT_EQUAL = (
    "mlx_sumrl also tokenises the answers in each step, computes the gradient's norm, checks that all is finite and "
    "measures what arrives of an update; mlx-lm does none of these",
    "padding is each one's own: mlx-lm to a multiple of 32 and one more, mlx_sumrl to the longest row",
    "mlx-lm is given its lengths less one: as it comes, it also trains one token of padding in each row; and every "
    "weight is unfrozen for it: as it comes, its full tuning leaves the embedding alone",
    "mlx-lm compiles its step; MLX keeps compiled kernels on disk, so that a first pass is slowest where none was "
    "made before",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or one JSON object; the exit code."""
    return answered(
        argv,
        module="benchmarks.sft_throughput",
        question=__doc__,
        options=options,
        measure=compare,
        work=work,
        table=tables,
    )


def options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for."""
    parser.add_argument("--batches", type=positive, help=f"batches in a pass, {BATCHES} otherwise")
    parser.add_argument("--repeats", type=positive, default=2, help="processes for each variant")
    parser.add_argument("--batch-size", type=int, choices=BATCH_SIZES, help="only this one")
    parser.add_argument("--tuning", choices=TUNINGS, help="only this one")
    parser.add_argument("--data", type=Path, help="rows with the columns id, dialogue and summary")
    parser.add_argument("--model", type=Path, help="folder of a model with a chat template")


def compare(asked: argparse.Namespace) -> Report:
    """Everything measured, as one object. Raises `UserError`."""
    sizes = TOY_BATCH_SIZES if asked.toy else BATCH_SIZES
    if asked.batch_size:
        sizes = (asked.batch_size,)
    batches = asked.batches or (TOY_BATCHES if asked.toy else BATCHES)
    held, train = TOY_HELD if asked.toy else HELD, batches * max(sizes)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if asked.toy and not (asked.data or asked.model):
            data, model = made_source(scratch, 2 * (held + train))
        else:
            data, model = source(asked.data, asked.model)
        before = prepare(data, model, scratch, held, train)
        report = opened_report(
            "sft_throughput",
            HELD_EQUAL,
            NOT_EQUAL,
            data=data.name,
            model=model.name,
            batches=batches,
            held_rows=held,
            held_loss_before=before,
            tolerance={"share": TOLERANCE, "floor": FLOOR},
            repeats=asked.repeats,
            cases=[],
        )
        for tuning in (asked.tuning,) if asked.tuning else TUNINGS:
            for size in sizes:
                report["cases"].append(compare_case(scratch, tuning, size, batches, asked.repeats, before))
    return report


def prepare(data: Path, model: Path, scratch: Path, held: int, train: int) -> float:
    """Write the rows' ids and the model as both sides read it; the held rows' loss before any training.

    The model is written anew because mlx-lm would misread some configs without a word.
    """
    from mlx_sumrl.config import PolicyConfig
    from mlx_sumrl.policy.export import export_model
    from mlx_sumrl.policy.loading import load_policy

    policy = load_policy(PolicyConfig(model=str(model), dtype="float32", tuning="full"))
    export_model(policy, scratch / "model")
    rows = tokenised(data, policy, held + train)
    write(scratch / "held.json", rows[:held])
    write(scratch / "train.json", rows[held:])
    return held_loss(policy.model, rows[:held])


def compare_case(
    scratch: Path, tuning: str, batch_size: int, batches: int, repeats: int, before: float
) -> dict[str, Any]:
    """Both sides with one tuning and one size of batch. Raises `UserError` where they trained differently."""

    def task(variant: str) -> dict[str, Any]:
        print(f"{tuning}, batches of {batch_size}: {variant}", file=sys.stderr)
        return {"scratch": str(scratch), "tuning": tuning, "batch_size": batch_size, "batches": batches}

    taken = taken_in_turn("benchmarks.sft_throughput", VARIANTS, repeats, task)
    difference = check_same_training(taken, before)
    train = _in_batches(read(str(scratch / "train.json")), batch_size, batches)
    useful = [sum(row.tokens for row in batch) for batch in train]
    variants = {variant: _numbers(results, useful) for variant, results in taken.results.items()}
    ours, peer = (variants[variant] for variant in VARIANTS)
    return {
        "tuning": tuning,
        "batch_size": batch_size,
        "useful_tokens": useful,
        "variants": variants,
        "ours_over_peer": {
            name: ours[name]["median"] / peer[name]["median"] for name in ("tokens_per_second", "first_pass")
        },
        "peak_peer_over_ours": peer["peak"]["median"] / ours["peak"]["median"],
        "held_loss_difference": difference,
        "load": list(taken.load),
    }


def check_same_training(taken: Taken, before: float) -> float:
    """By how much the held losses of all processes differ. Raises `UserError` where the training was not the same.

    ``before`` is the held loss that all began with.
    """
    results = [result for results in taken.results.values() for result in results]
    trained = {result["trained_tokens"] for result in results}
    if len(trained) > 1:
        raise UserError(f"the sides trained on different numbers of tokens: {sorted(trained)}")
    losses: list[float] = [result["held_loss"] for result in results]
    difference, changed = max(losses) - min(losses), abs(before - max(losses))
    if not difference <= max(FLOOR, TOLERANCE * changed):
        raise UserError(
            f"the sides did not train the same model: the held loss was {before:.6f} and became "
            f"{min(losses):.6f} to {max(losses):.6f}"
        )
    return difference


def _numbers(results: list[dict[str, Any]], useful: list[int]) -> dict[str, Any]:
    """Of one side: rates of the second pass, step by step, and of the first as a whole; peaks of all steps."""
    first = [result["steps"][: len(useful)] for result in results]
    second = [result["steps"][len(useful) :] for result in results]
    return {
        "tokens_per_second": summary(
            [tokens / step["seconds"] for steps in second for step, tokens in zip(steps, useful, strict=True)]
        ),
        "first_pass": summary([sum(useful) / sum(step["seconds"] for step in steps) for steps in first]),
        "peak": summary([max(step["peak"] for step in result["steps"]) for result in results]),
        "held_loss": summary([result["held_loss"] for result in results]),
    }


def work(variant: str, scratch: str, tuning: Tuning, batch_size: int, batches: int) -> dict[str, Any]:
    """One side's steps, both passes, in this process."""
    held, train = (read(f"{scratch}/{name}.json") for name in ("held", "train"))
    steps = own_sft_steps if variant == OURS else peer_sft_steps
    return steps(f"{scratch}/model", _in_batches(train, batch_size, batches) * PASSES, held, tuning)


def _in_batches(rows: list[SupervisedRow], batch_size: int, batches: int) -> list[list[SupervisedRow]]:
    return [rows[start : start + batch_size] for start in range(0, batch_size * batches, batch_size)]


def tables(report: Report) -> Group:
    """The report for a person: medians, and in brackets the lowest and the highest."""
    before = report["held_loss_before"]
    return Group(*(_case_table(case, before) for case in report["cases"]))


def _case_table(case: dict[str, Any], before: float) -> Table:
    low, high = case["load"]
    shown_table = Table(
        "",
        "useful tokens/s",
        "first pass",
        "peak MB",
        "held loss",
        title=f"{case['tuning']}, batches of {case['batch_size']} rows",
        caption=f"held loss {before:.4f} before; the two differ by {case['held_loss_difference']:.1e}; "
        f"machine's load meanwhile {low} to {high}",
        title_justify="left",
    )
    ratios = case["ours_over_peer"]
    for variant, numbers in case["variants"].items():
        cells = [
            shown(numbers["tokens_per_second"], digits=0),
            shown(numbers["first_pass"], digits=0),
            shown(numbers["peak"], 1e-6, 0),
        ]
        if variant == OURS:
            times = (ratios["tokens_per_second"], ratios["first_pass"], 1 / case["peak_peer_over_ours"])
            cells = [f"{cell}\n{ratio:.2f} x" for cell, ratio in zip(cells, times, strict=True)]
        shown_table.add_row(variant, *cells, f"{numbers['held_loss']['median']:.5f}")
    return shown_table


if __name__ == "__main__":
    sys.exit(main())

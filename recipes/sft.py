"""Supervised fine-tuning: full, LoRA, DoRA, and QLoRA where the model is a quantised one.

    python -m recipes.sft --policy.model M --data.train rows.jsonl --data.evaluation held.jsonl --sft.epochs 2
    python -m recipes.sft --config mine.yaml --policy.tuning full
    python -m recipes.sft --resume runs/sft

prepare -> train, measured on held-out rows every so many steps -> export the best -> table and samples.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mlx_sumrl.config import SftRunConfig
from mlx_sumrl.options.command_line import exit_code_of, parse_command
from mlx_sumrl.reporting.curve_file import CURVES
from mlx_sumrl.reporting.progress import Progress, make_progress
from mlx_sumrl.reporting.report.run_report import leave_report
from mlx_sumrl.reporting.run_folder import RunFolder
from mlx_sumrl.training.supervised_preparation import prepare_sft
from mlx_sumrl.training.supervised_trainer import SupervisedTrainer
from recipes.exporting import begin, export, how_to_share
from recipes.fine_tuned import fine_tuned
from recipes.opened_run import opened

DESCRIPTION = "Fine-tune a model on documents and their summaries."
SHOWN = 12
"""Evaluations in the table at the end; all are in metrics.jsonl."""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and do the job."""
    command = parse_command(SftRunConfig, argv, prog="python -m recipes.sft", description=DESCRIPTION)
    config, run = opened(command, SftRunConfig)
    with run, make_progress() as progress:
        try:
            the_job(config, run, progress)
        except KeyboardInterrupt:
            progress.finish()
            print(
                f"stopped; go on with: python -m recipes.sft --resume {shlex.quote(str(run.path))}",
                file=sys.stderr,
            )
            raise


def the_job(config: SftRunConfig, run: RunFolder, progress: Progress) -> None:
    """The job, top to bottom."""
    prepared = prepare_sft(config, run.path, progress.note)
    policy = prepared.policy
    begin(policy, config, run, {"train": len(prepared.train), "evaluation": len(prepared.held_out)})

    trainer, step = fine_tuned(config, prepared, run, progress)

    exported = export(policy, config, run.path, step)
    page = leave_report(run.path, config.report, progress.note)
    report(run, trainer, step, exported, page)


def report(
    run: RunFolder, trainer: SupervisedTrainer, step: int, exported: Sequence[Path], page: Path | None
) -> None:
    """The losses, what the exported policy answers, and where everything is."""
    console = Console()
    measured = [row for row in run.metrics() if "evaluation/loss" in row]
    if measured:
        table = Table(title=f"nats per token: {len(trainer.held_out)} held-out rows")
        for column in ("step", "held out", "training rows"):
            table.add_column(column, justify="right")
        every = -(-len(measured) // SHOWN)
        for place, row in enumerate(measured):
            if place % every == 0 or row["step"] == step or place == len(measured) - 1:
                mark = " *" if row["step"] == trainer.best_step else ""
                table.add_row(
                    str(row["step"]),
                    f"{_number(row['evaluation/loss'])}{mark}",
                    _number(row.get("evaluation/train_loss")),
                )
        console.print(table)
        file = run.path / "evaluation" / f"step-{step:06d}.json"
        samples = json.loads(file.read_text())["samples"] if file.is_file() else []
        for row in samples:
            console.print(f"\n[bold]{row['id']}[/bold], {row['length']} tokens", highlight=False)
            for name in ("prompt", "reference", "answer"):
                text = " ".join(row[name].split())[:400]
                console.print(f"{name + ':':<11}{text}", markup=False, highlight=False)
    console.print()
    what = "the lowest held-out loss" if measured and step == trainer.best_step else "the last step"
    for path in exported:
        console.print(f"exported {path} (step {step}, {what})", markup=False, highlight=False, soft_wrap=True)
    if (run.path / CURVES).is_file():
        console.print(f"curves {run.path / CURVES}", markup=False, highlight=False, soft_wrap=True)
    if page is not None:
        console.print(f"report {page}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"run folder {run.path}", markup=False, highlight=False, soft_wrap=True)
    if exported:
        console.print(how_to_share(run.path), markup=False, highlight=False, soft_wrap=True)
    sys.stdout.flush()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(exit_code_of(main))

"""Which learning rate to begin with: a short range test that leaves no trace in the model and writes nothing.

    python -m recipes.learning_rate --policy.model M --data.train rows.jsonl
    python -m recipes.learning_rate --config my_sft.yaml

It takes the options of recipes.sft, so a config of a run can be given as it is.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import model_validator
from rich.console import Console
from rich.table import Table

from mlx_sumrl.config import RateRangeConfig, SftRunConfig
from mlx_sumrl.options.command_line import exit_code_of, parse
from mlx_sumrl.reporting.progress import make_progress
from mlx_sumrl.training.rate_range import BELOW_DIVERGENCE, RangeTest, rate_range
from mlx_sumrl.training.supervised_preparation import prepare_sft

DESCRIPTION = "Suggest a learning rate for recipes.sft by raising it from step to step and watching the loss."
SHOWN = 14
"""Lines of the table."""


class LearningRateConfig(SftRunConfig):
    """The options of a supervised run, and the range of rates."""

    range: RateRangeConfig = RateRangeConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        return self  # how long the run will be and when it stops does not matter here


def main(argv: Sequence[str] | None = None) -> None:
    """Test, print, forget."""
    config = parse(LearningRateConfig, argv, prog="python -m recipes.learning_rate", description=DESCRIPTION)
    config = config.model_copy(update={"data": config.data.model_copy(update={"evaluation": None})})
    with make_progress() as progress, tempfile.TemporaryDirectory() as folder:
        prepared = prepare_sft(config, Path(folder), progress.note)
        progress.start("range test", config.range.steps)
        test = rate_range(
            prepared.policy,
            prepared.train,
            config.range,
            config.sft,
            config.optimizer,
            seed=config.seed,
            progress=lambda step, rate, loss: progress.update(step, {"loss": loss}),
        )
    report(test, config)


def report(test: RangeTest, config: LearningRateConfig) -> None:
    """A small table, and the suggestion in a sentence."""
    console = Console()
    table = Table(title="nats per token, smoothed, by learning rate")
    table.add_column("learning rate", justify="right")
    table.add_column("loss", justify="right")
    table.add_column("")
    count = len(test.smoothed)
    shown = {round(i * (count - 1) / (SHOWN - 1)) for i in range(SHOWN)}
    marks = {test.steepest: "falls fastest", test.diverged: "half of the fall is lost"}
    for place, (rate, loss) in enumerate(zip(test.rates, test.smoothed, strict=False)):
        if place in shown or rate in marks:
            table.add_row(f"{rate:.1e}", f"{loss:.4f}", marks.get(rate, ""))
    console.print(table)
    if test.suggestion is None:
        way_out = (
            f"try --range.highest {10 * config.range.highest:g}"
            if test.diverged is None
            else (f"try --range.lowest {config.range.lowest / 10:g}")
        )
        said = f"no suggestion: the loss fell nowhere between {test.rates[0]:.1e} and {test.rates[-1]:.1e}; {way_out}"
    else:
        said = f"suggested: --optimizer.learning_rate {test.suggestion:.1e}"
        if test.suggestion == test.steepest:
            said += " (where the loss falls fastest)"
        else:
            said += f" ({BELOW_DIVERGENCE:g} times below where it diverges)"
        if test.diverged is None:
            said += f"; it diverged nowhere up to {test.rates[-1]:.1e}"
    console.print(said, highlight=False, markup=False, soft_wrap=True)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(exit_code_of(main))

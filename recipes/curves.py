"""Curves of runs that are there already, one or several in the same axes.

    python -m recipes.curves runs/sft
    python -m recipes.curves runs/staged runs/joint --out comparison.svg

The first draws runs/sft/curves.svg again. A run may still be going on.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from mlx_sumrl.config import Room
from mlx_sumrl.errors import UserError
from mlx_sumrl.options.command_line import exit_code_of, parse
from mlx_sumrl.reporting.curve_file import CURVES
from mlx_sumrl.reporting.curves import SUFFIXES, draw, read_curves, save

DESCRIPTION = (
    "Draw what runs wrote into metrics.jsonl: losses, rewards, lengths. Name their folders, as in "
    "python -m recipes.curves runs/staged runs/joint --out comparison.svg"
)


class CurvesOptions(Room):
    """Which runs, and where to."""

    runs: tuple[Path, ...] = Field(min_length=1)
    """Folders of runs; named without --runs too."""
    out: Path | None = None
    """File to write, .svg or .png; of a single run curves.svg in its folder where this is left out."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.out is None and len(self.runs) > 1:
            raise ValueError(f"out is missing: give --out comparison.svg for the {len(self.runs)} runs")
        if self.out is not None and self.out.suffix not in SUFFIXES:
            raise ValueError(f"out is {str(self.out)!r}: give it the ending {' or '.join(SUFFIXES)}")
        return self

    @property
    def file(self) -> Path:
        """What is written."""
        return self.out or self.runs[0] / CURVES


def main(argv: Sequence[str] | None = None) -> None:
    """Read, draw, say where."""
    given = _with_runs(list(sys.argv[1:] if argv is None else argv))
    config = parse(CurvesOptions, given, prog="python -m recipes.curves", description=DESCRIPTION)
    often = Counter(path.resolve().name for path in config.runs)
    runs = [
        read_curves(path, path.resolve().name if often[path.resolve().name] == 1 else str(path))
        for path in config.runs
    ]
    figure = draw(runs)
    try:
        save(figure, config.file)
    except OSError as error:
        raise UserError(
            f"--out {config.file} cannot be written ({error.strerror or error}): choose another place"
        ) from error
    print(f"wrote {config.file}")


def _with_runs(argv: list[str]) -> list[str]:
    """The words that are neither options nor values of one, as ``--runs``."""
    runs: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if not word.startswith("-"):
            runs.append(word)
            continue
        rest.append(word)
        if word.startswith("--") and "=" not in word and word != "--help":
            rest += [value for value in [next(words, None)] if value is not None]
    if runs and any(word.partition("=")[0] == "--runs" for word in rest):
        raise UserError(f"--runs and {runs[0]} say the same thing: name all runs in one way")
    return ["--runs", json.dumps(runs), *rest] if runs else rest


if __name__ == "__main__":
    sys.exit(exit_code_of(main))

"""Runs and evaluations side by side: is the difference real, and what does it look like.

    python -m recipes.compare runs/quickstart
    python -m recipes.compare before.json after.json --baseline before --out comparison
    python -m recipes.compare staged=runs/s0,runs/s1,runs/s2 joint=runs/j0,runs/j1,runs/j2
    python -m recipes.compare runs/s0 runs/s1 runs/j0 runs/j1 --group seeds

The first shows a run's own evaluations, before and after each stage. With several runs each one's last evaluation is
compared, and what they began from.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlx_sumrl.config import ComparisonConfig, Room
from mlx_sumrl.errors import UserError
from mlx_sumrl.evaluation.statistics.comparison import Comparison
from mlx_sumrl.options.command_line import exit_code_of, parse
from mlx_sumrl.reporting.report.gathering import Given, Wanted, gather
from mlx_sumrl.reporting.report.material import Material
from mlx_sumrl.reporting.report.verdicts import by_pair, in_short
from mlx_sumrl.reporting.report.wording import number, short, title_of
from mlx_sumrl.reporting.report.writing import write_report

DESCRIPTION = (
    "Compare runs and evaluations: a table, comparison.json, and report.html with figures. Name folders of runs and "
    "files of recipes.evaluate --out, several seeds of one thing as name=path,path: "
    "python -m recipes.compare staged=runs/s0,runs/s1 joint=runs/j0,runs/j1"
)
OUT = Path("comparison")


class CompareOptions(Room):
    """What is compared, and how."""

    compared: tuple[str, ...] = Field(min_length=1)
    """Folders of runs, evaluation files, or name=path,path for several seeds of one thing; named without --compared
    too."""
    baseline: str | None = None
    """What the others are held against; `before`, or the first, where this is left out."""
    names: tuple[str, ...] = ()
    """Names for what is compared, in its order."""
    group: Literal["seeds"] | None = None
    """`seeds` puts together what has the same options but for the seed."""
    rows: Literal["same", "common"] = "same"
    """`common` compares the rows that all have; otherwise all must have the same."""
    metrics: tuple[str, ...] = ()
    """Metrics to test; a few that say different things where none are named, since more tests show less."""
    samples: int = Field(default=4, ge=0)
    """Rows whose summaries are shown side by side."""
    out: Path | None = None
    """Folder for report.html, comparison.json and figures/; of a single run its own, else `comparison`."""
    comparison: ComparisonConfig = ComparisonConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for one in self.given:
            if any(not str(path).strip() or str(path) == "." for path in one.paths) or one.name == "":
                raise ValueError(f"compared holds {self.compared!r}: write name=path,path, or a path")
        return self

    @property
    def given(self) -> list[Given]:
        """The words, read."""
        return [_given(word) for word in self.compared]

    @property
    def folder(self) -> Path:
        """What is written into."""
        if self.out is not None:
            return self.out
        paths = [path for one in self.given for path in one.paths]
        return paths[0] if len(paths) == 1 and paths[0].is_dir() else OUT


def main(argv: Sequence[str] | None = None) -> None:
    """Read, compare, print, write."""
    given = _with_compared(list(sys.argv[1:] if argv is None else argv))
    config = parse(CompareOptions, given, prog="python -m recipes.compare", description=DESCRIPTION)
    if config.folder.is_file():
        raise UserError(f"--out {config.folder} is a file: name a folder")
    wanted = Wanted(
        config.baseline, config.names, config.group == "seeds", config.rows, config.metrics, config.samples
    )
    material = gather(config.given, wanted, config.comparison)
    console = Console()
    show(material, console)
    for path in write_report(material, config.folder):
        if path.suffix in (".html", ".json"):
            console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"figures are in {config.folder / 'figures'}", highlight=False, markup=False, soft_wrap=True
    )


def show(material: Material, console: Console) -> None:
    """A table for each pair, and what it comes to."""
    for pair, found in by_pair(material.comparisons).items():
        console.print(pair_table(pair, found))
    for line in in_short(material):
        console.print(line, highlight=False, markup=False)
    for warning in material.warnings:
        console.print(f"mind: {warning}", highlight=False, markup=False)


def pair_table(pair: tuple[str, str], found: Sequence[Comparison]) -> Table:
    """One line for each metric, with its verdict in words; 80 columns wide."""
    baseline, other = (short(name, 30) for name in pair)
    seeds = max(one.seeds for one in found)
    several = f", {seeds[0]} and {seeds[1]} seeds" if max(seeds) > 1 else ""
    table = Table(
        title=escape(f"{other} against {baseline}, {max(one.rows for one in found)} rows{several}"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        caption="scores and shares × 100; verdicts after Holm's correction",
        caption_justify="left",
    )
    table.add_column("metric", no_wrap=True)
    for header in ("base", "other", "change", "interval"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for one in found:
        ends = [] if one.low is None or one.high is None else [one.low, one.high]
        table.add_row(
            escape(short(title_of(one.metric), 15)),
            number(one.baseline_mean, one.metric),
            number(one.other_mean, one.metric),
            number(one.difference, one.metric),
            " … ".join(number(end, one.metric) for end in ends) or "-",
            one.verdict,
        )
    return table


def _given(word: str) -> Given:
    name, sign, paths = word.partition("=")
    if sign and not Path(word).exists():
        return Given(tuple(map(Path, paths.split(","))), name)
    return Given((Path(word),))


def _with_compared(argv: list[str]) -> list[str]:
    """The words that are neither options nor values of one, as ``--compared``."""
    words: list[str] = []
    rest: list[str] = []
    left = iter(argv)
    for word in left:
        if not word.startswith("-"):
            words.append(word)
            continue
        rest.append(word)
        if word.startswith("--") and "=" not in word and word != "--help":
            rest += [value for value in [next(left, None)] if value is not None]
    if words and any(word.partition("=")[0] == "--compared" for word in rest):
        raise UserError(f"--compared and {words[0]} say the same thing: name all in one way")
    return ["--compared", json.dumps(words), *rest] if words else rest


if __name__ == "__main__":
    sys.exit(exit_code_of(main))

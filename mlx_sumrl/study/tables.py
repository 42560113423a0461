"""A study's tables: for the terminal, as Markdown, and as JSON. Never imports mlx.

Beside length and overlap each line says how the text holds up, so that a model that fills the length with noise looks
bad: repeats, variety, whether it is whole sentences, and its perplexity under the model that no reward has touched; and
the variety of all texts together, so that one that says the same of every document does, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from mlx_sumrl.study.budgets import Budget
from mlx_sumrl.study.numbers import MEDIAN, Line


@dataclass(frozen=True, slots=True)
class Column:
    """A number of a line."""

    title: str
    short: str
    """For a terminal of 80 columns."""
    percent: bool = True


COLUMNS = {
    "within": Column("Within", "within"),
    "length_mean": Column("Length", "length", percent=False),
    "rougeL": Column("ROUGE-L", "R-L"),
    "meteor": Column("METEOR", "METEOR"),
    "repetition": Column("Repetition", "repeat"),
    "distinct_2": Column("Distinct-2", "dist-2"),
    "distinct_2_all": Column("Distinct-2, all", "all-2"),
    "whole_sentences": Column("Whole sentences", "whole"),
    MEDIAN: Column("Perplexity", "perpl.", percent=False),
}
CAPTION = "means over seeds ± their spread; percent, but for length and median perplexity"


@dataclass(frozen=True, slots=True)
class Trained:
    """A method's budget, and what each of its runs has made of it."""

    name: str
    allowed: Budget
    made: dict[str, Budget] = field(default_factory=dict)
    """Run -> what it was trained on; those that never began are left out."""

    @property
    def fewer(self) -> dict[str, Budget]:
        """Runs that made fewer steps than they were allowed."""
        return {name: one for name, one in self.made.items() if one.steps < self.allowed.steps}


def results_table(title: str, lines: Sequence[Line]) -> Table:
    """Means with the spread over seeds below them, a line for each baseline and method; `-` where there is none."""
    table = Table(
        title=escape(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        caption=CAPTION,
        caption_justify="left",
    )
    table.add_column("policy", overflow="fold")
    for column in COLUMNS.values():
        table.add_column(column.short, justify="right", no_wrap=True)
    for line in lines:
        several = f" ({len(line.files)})" if len(line.files) > 1 else ""
        table.add_row(escape(line.name + several), *("\n±".join(_parts(line, metric)) for metric in COLUMNS))
    return table


def budgets_table(trained: Sequence[Trained]) -> Table:
    """What each method's runs were trained on, on average."""
    table = Table(
        title="trained on, mean over seeds",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )
    headers, rows = _budgets(trained)
    for place, header in enumerate(headers):
        table.add_column(header, justify="right" if place else "left")
    for name, *cells in rows:
        table.add_row(escape(name), *cells)
    return table


def budget_notes(trained: Sequence[Trained]) -> list[str]:
    """A sentence for each run that made fewer steps than its method allows."""
    return [
        f"{run} made {made.steps} of the {one.allowed.steps} steps it was allowed ({made.rollouts} of "
        f"{one.allowed.rollouts} rollouts)"
        for one in trained
        for run, made in one.fewer.items()
    ]


def gap_notes(sets: Mapping[str, Sequence[Line]]) -> list[str]:
    """A sentence for each mean of the tables that is one of some of its line's seeds only."""
    found = []
    for title, lines in sets.items():
        for line in lines:
            for metric, column in COLUMNS.items():
                lacking = [run for run, numbers in line.files.items() if numbers.get(metric) is None]
                if 0 < len(lacking) < len(line.files):
                    found.append(
                        f"{column.title} of {line.name} on {title} is a mean without {', '.join(lacking)}, whose "
                        "file has no such number; without that file --resume measures anew"
                    )
    return found


def markdown(
    name: str, sets: Mapping[str, Sequence[Line]], trained: Sequence[Trained], notes: Sequence[str]
) -> str:
    """All tables as GitHub Markdown."""
    parts = [f"# {name}"]
    for title, lines in sets.items():
        headers = ["Policy", "Seeds", *(column.title for column in COLUMNS.values())]
        rows = [
            [line.name, str(len(line.files)), *(" ± ".join(_parts(line, metric)) for metric in COLUMNS)]
            for line in lines
        ]
        parts += [f"## {title}", _markdown_table(headers, rows)]
    parts += [CAPTION[0].upper() + CAPTION[1:] + "."]
    if trained:
        parts += ["## Trained on", _markdown_table(*_budgets(trained)), "Means over seeds."]
    parts += ["\n".join(f"- {note}" for note in notes)] if notes else []
    return "\n\n".join(parts) + "\n"


def to_json(
    name: str, sets: Mapping[str, Sequence[Line]], trained: Sequence[Trained], notes: Sequence[str]
) -> dict[str, Any]:
    """Every number: of each run and baseline, over seeds, and of budgets."""
    return {
        "name": name,
        "sets": {
            title: {
                line.name: {
                    "runs": {run: dict(numbers) for run, numbers in line.files.items()},
                    "mean": {metric: line.mean(metric) for metric in line.metrics()},
                    "spread": {metric: line.spread(metric) for metric in line.metrics()},
                }
                for line in lines
            }
            for title, lines in sets.items()
        },
        "trained": {
            one.name: {
                "allowed": asdict(one.allowed),
                "made": {run: asdict(made) for run, made in one.made.items()},
            }
            for one in trained
        },
        "notes": list(notes),
    }


def shown(line: Line, metric: str) -> str:
    """A line's mean of one of `COLUMNS`, as the tables have it."""
    return _parts(line, metric)[0]


def _parts(line: Line, metric: str) -> list[str]:
    """Mean, and spread where there is one."""
    scale = 100 if COLUMNS[metric].percent else 1
    values = (line.mean(metric), line.spread(metric))
    return [f"{scale * value:.1f}" for value in values if value is not None] or ["-"]


def _budgets(trained: Sequence[Trained]) -> tuple[list[str], list[list[str]]]:
    supervised = any(one.allowed.supervised_steps for one in trained)
    headers = ["policy", "runs", "steps", "of", "rollouts", "of", "completion tokens"]
    rows = []
    for one in trained:
        made = list(one.made.values())
        cells = [
            _mean([budget.steps for budget in made]),
            f"{one.allowed.steps:,}",
            _mean([budget.rollouts for budget in made]),
            f"{one.allowed.rollouts:,}",
            _mean([budget.tokens or 0 for budget in made]),
        ]
        apart = [_mean([budget.supervised_steps for budget in made])] if supervised else []
        rows.append([one.name, str(len(made)), *cells, *apart])
    return [*headers, *(["supervised steps"] if supervised else [])], rows


def _mean(values: Sequence[int]) -> str:
    return f"{fmean(values):,.0f}" if values else "-"


def _markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---", *["---:"] * (len(headers) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)

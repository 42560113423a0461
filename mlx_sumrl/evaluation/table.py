"""Named evaluations side by side: for the terminal, and as GitHub Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import starmap

from rich import box
from rich.markup import escape
from rich.table import Table

from mlx_sumrl.config import DEFAULT_LENGTH_UNIT
from mlx_sumrl.evaluation.results import Evaluation
from mlx_sumrl.metrics.catalogue import CATALOGUE

_PERCENT_COLUMNS_BEFORE = {"within": "Within", "exact": "Exact"}
_PERCENT_COLUMNS_AFTER = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeL_recall": "ROUGE-L recall",
    "meteor": "METEOR",
}
HEADERS = ("Policy", *_PERCENT_COLUMNS_BEFORE.values(), "Length", *_PERCENT_COLUMNS_AFTER.values())
"""Column titles. Shares and scores are percentages; Length is mean ± standard deviation, in tokens where it does not
say otherwise."""

_SHORT = {"ROUGE-1": "R-1", "ROUGE-2": "R-2", "ROUGE-L": "R-L", "ROUGE-L recall": "recall"}
CAPTION = "percent; length in {unit}, mean ± spread; R: ROUGE F1 and ROUGE-L recall"
"""Explains the titles as a terminal of 80 columns has them."""

_CONSISTENCY = "consistency_"
_SHOWN_ABOVE = frozenset(("length", *_PERCENT_COLUMNS_BEFORE, *_PERCENT_COLUMNS_AFTER))
_LEFT_TO_THE_FILE = ("_recall", "_precision")


def _unit(evaluations: Mapping[str, Evaluation]) -> str:
    """That of the lengths; all of them where evaluations with several are put side by side."""
    return " or ".join(dict.fromkeys(one.unit for one in evaluations.values())) or DEFAULT_LENGTH_UNIT


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _cells(name: str, evaluation: Evaluation) -> list[str]:
    summary = evaluation.summary
    return [
        name,
        *(_percent(summary[key]) for key in _PERCENT_COLUMNS_BEFORE),
        f"{summary['length_mean']:.1f} ± {summary['length_std']:.1f}",
        *(_percent(summary[key]) for key in _PERCENT_COLUMNS_AFTER),
    ]


def comparison_table(evaluations: Mapping[str, Evaluation], title: str | None = None) -> Table:
    """A rich table with one line per evaluation, in the order given; `-` where a metric is missing."""
    table = Table(
        title=title,
        box=box.SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
        caption=CAPTION.format(unit=_unit(evaluations)),
        caption_justify="left",
    )
    for header in HEADERS:
        short = _SHORT.get(header, header)
        table.add_column(short, justify="left" if header == HEADERS[0] else "right", no_wrap=True)
    for name, *cells in starmap(_cells, evaluations.items()):
        table.add_row(escape(name), *cells)
    return table


def metrics_table(evaluation: Evaluation) -> Table:
    """What `comparison_table` has no room for, of one evaluation: a line per metric, its mean and what it says.

    Where several samples were drawn, how much every metric varies over them, too. Recalls, and precision and recall of
    BERTScore, are left to the file.
    """
    summary = evaluation.summary
    varies = any(name.startswith(_CONSISTENCY) for name in summary)
    caption = f"percent, but for length in {evaluation.unit}, density in words, compression as a ratio"
    if varies:
        caption += "; varies: standard deviation over mean of a row's samples, percent"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), caption=caption, caption_justify="left")
    table.add_column("Metric", no_wrap=True)
    for header in ("Mean", *(["Varies"] if varies else [])):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("What it says")
    for name, metric in CATALOGUE.items():
        value = summary.get("length_mean" if name == "length" else name)
        varied = summary.get(f"{_CONSISTENCY}{name}")
        if value is None or name.endswith(_LEFT_TO_THE_FILE) or (name in _SHOWN_ABOVE and varied is None):
            continue
        mean = f"{100 * value if metric.high == 1 else value:.1f}"
        table.add_row(metric.title, mean, *([_percent(varied)] if varies else []), metric.says)
    return table


def comparison_markdown(evaluations: Mapping[str, Evaluation]) -> str:
    """The same as a GitHub Markdown table, ending in a newline."""
    unit = _unit(evaluations)
    titles = {} if unit == DEFAULT_LENGTH_UNIT else {"Length": f"Length ({unit})"}
    lines = [[titles.get(title, title) for title in HEADERS], ["---", *["---:"] * (len(HEADERS) - 1)]]
    for name, *cells in starmap(_cells, evaluations.items()):
        lines.append([name.replace("|", "\\|"), *cells])  # a bare | would end the cell
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)

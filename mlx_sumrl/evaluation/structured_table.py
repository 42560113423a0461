"""Structured evaluations side by side, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.markup import escape
from rich.table import Table

from mlx_sumrl.evaluation.structured import StructuredEvaluation

_SHARES = {
    "valid": "valid",
    "repaired": "mended",
    "around": "around",
    "several": "several",
    "absent": "none",
    "unfinished": "cut",
    "field_f1_micro": "micro",
    "field_f1_macro": "macro",
}
CAPTION = (
    "percent of the answers; mended: valid after a repair; around: text around the JSON; several: more than one JSON; "
    "cut: at the token limit; micro, macro: F1 of fields"
)
"""Explains the titles as a terminal of 80 columns has them."""


def structured_table(evaluations: Mapping[str, StructuredEvaluation], title: str | None = None) -> Table:
    """One line per evaluation, in the order given."""
    table = _table(title, CAPTION, "decoding", [*_SHARES.values(), "tok/s"])
    for name, evaluation in evaluations.items():
        summary = evaluation.summary
        speed = summary.get("tokens_per_second")
        table.add_row(
            escape(name),
            *(f"{100 * summary[key]:.1f}" for key in _SHARES),
            "-" if speed is None else f"{speed:,.0f}",
        )
    return table


def field_table(evaluations: Mapping[str, StructuredEvaluation], title: str | None = None) -> Table:
    """One line per field: F1 and, in brackets, the share of rows that have exactly the reference's items."""
    table = _table(title, "F1, and in brackets the share of exact rows; percent", "field", list(evaluations))
    names = dict.fromkeys(name for evaluation in evaluations.values() for name in evaluation.fields)
    for name in names:
        scores = [evaluation.fields.get(name) for evaluation in evaluations.values()]
        table.add_row(
            escape(name),
            *("-" if one is None else f"{100 * one.f1:.1f} ({100 * one.exact:.1f})" for one in scores),
        )
    return table


def _table(title: str | None, caption: str, first: str, headers: list[str]) -> Table:
    table = Table(
        title=title, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), caption=caption, caption_justify="left"
    )
    table.add_column(first, no_wrap=True)
    for header in headers:
        table.add_column(escape(header), justify="right")
    return table

"""Structured evaluations side by side, for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from rich import box
from rich.markup import escape
from rich.table import Table

from mlx_sumrl.evaluation.structured import StructuredEvaluation
from mlx_sumrl.evaluation.structured_baselines import SAYS
from mlx_sumrl.evaluation.structured_consistency import Consistency
from mlx_sumrl.evaluation.structured_fields import FieldScore
from mlx_sumrl.evaluation.structured_scores import StructuredScores

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
_WHOLE = {
    "valid": "valid",
    "exact_match": "all",
    "precision": "P",
    "recall": "R",
    "f1": "F1",
    "jaccard": "Jaccard",
    "field_f1_micro": "micro",
    "field_f1_macro": "macro",
}
_LISTS = {
    "precision_mean": "P",
    "recall_mean": "R",
    "f1_mean": "F1",
    "f1": "micro",
    "jaccard_mean": "Jaccard",
    "exact": "exact",
}
_LIST_CAPTION = (
    "percent; P, R, F1, Jaccard: means over rows, 100 where both lists are empty; micro: F1 over the items of all "
    "rows; empty: rows where both are empty"
)
_NUMBER_CAPTION = (
    "errors in the field's own unit; R²: 1 perfect, 0 as good as always saying the mean; exact: percent right; there: "
    "percent that have a number"
)
_TEXTS = {"rouge1": "R-1", "rouge2": "R-2", "rougeL": "R-L", "meteor": "METEOR", "bleu": "BLEU"}


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


def field_tables(scores: Mapping[str, StructuredScores]) -> list[Table]:
    """One table for each kind of field that is there, a line for each field and each of `scores`, in the order given.

    All fit a terminal of 80 columns.
    """
    fields: dict[str, FieldScore] = {}
    for one in scores.values():
        for name, field in one.fields.items():
            fields.setdefault(name, field)
    texts = dict.fromkeys(name for one in scores.values() for name in one.texts)
    lists = [name for name, field in fields.items() if field.kind == "list"]
    numbers = [name for name, field in fields.items() if field.kind == "number"]
    others = [name for name in fields if name not in (*lists, *numbers, *texts)]
    tables = []
    if lists:
        table = _table("lists", _LIST_CAPTION, "field", [*_LISTS.values(), "empty"])
        _lines(table, lists, scores, lambda one, name: _list_cells(one.fields[name]))
        said = [f"{name}: {fields[name].matching}" for name in lists]
        table.caption = f"{_LIST_CAPTION}. Items matched: {'; '.join(said)}"
        tables.append(table)
    if numbers:
        table = _table("numbers", _NUMBER_CAPTION, "field", ["MAE", "RMSE", "median", "R²", "exact", "there"])
        _lines(table, numbers, scores, lambda one, name: _number_cells(one.fields[name]))
        missing = {
            f"no R² of {name}: {score.r2_missing}"
            for one in scores.values()
            for name in numbers
            if name in one.fields and (score := one.fields[name].numbers) and score.r2_missing
        }
        table.caption = "; ".join([_NUMBER_CAPTION, *sorted(missing)])
        tables.append(table)
    if texts:
        table = _table("texts", "", "field", [*_TEXTS.values(), "words", "exact"])
        _lines(table, texts, scores, lambda one, name: _text_cells(one, name))
        table.caption = _text_caption(scores, texts)
        tables.append(table)
    if others:
        table = _table("other fields", "percent of rows that are exactly right", "field", ["exact"])
        _lines(table, others, scores, lambda one, name: [_percent(one.fields[name].exact)])
        tables.append(table)
    return tables


def summary_table(scores: Mapping[str, StructuredScores], title: str | None = None) -> Table:
    """Whole answers: one line for each of `scores`."""
    caption = (
        "percent; all: answers all of whose fields are exact; P to Jaccard: means of the lists; micro, macro: F1 of "
        "all fields. " + SAYS
    )
    table = _table(title, caption, "answers", [*_WHOLE.values()])
    for name, one in scores.items():
        table.add_row(escape(name), *(_percent(one.summary.get(key)) for key in _WHOLE))
    return table


def consistency_table(found: Consistency) -> Table:
    """How much several answers to one question agree, field by field."""
    shares = "-" if found.identical is None else f"{100 * found.identical:.1f}"
    caption = (
        f"{len(found.ids)} questions with {found.least} to {found.most} usable answers ({found.left_out} with "
        f"fewer than two are left out); {shares} % of them always got the same answer. same: percent of "
        "questions whose answers all agree; Jaccard: mean of pairs, percent; variation: standard deviation over "
        "mean, percent"
    )
    table = _table("agreement of samples", caption, "field", ["same", "Jaccard", "variation"])
    for name, field in found.fields.items():
        table.add_row(
            escape(name), _percent(field.identical), _percent(field.jaccard), _percent(field.variation)
        )
    return table


def _lines(
    table: Table,
    names: Iterable[str],
    scores: Mapping[str, StructuredScores],
    cells: Callable[[StructuredScores, str], list[str]],
) -> None:
    """The field's name on a line of its own, each of `scores` below it."""
    for name in names:
        table.add_row(escape(name))
        for said, one in scores.items():
            if name in one.fields:
                table.add_row(f"  {escape(said)}", *cells(one, name))


def _list_cells(field: FieldScore) -> list[str]:
    return [*(_percent(getattr(field, key)) for key in _LISTS), _percent(field.both_empty)]


def _number_cells(field: FieldScore) -> list[str]:
    score = field.numbers
    if score is None:
        return ["-"] * 4 + [_percent(field.exact), _percent(field.answered)]
    shown = [_number(one) for one in (score.mae, score.rmse, score.median_error, score.r2)]
    return [*shown, _percent(field.exact), _percent(score.answered)]


def _text_cells(one: StructuredScores, name: str) -> list[str]:
    text = one.texts.get(name)
    if text is None:
        return ["-"] * (len(_TEXTS) + 1) + [_percent(one.fields[name].exact)]
    shown = [_percent(text.metrics.get(key)) for key in _TEXTS]
    return [*shown, f"{text.words:.1f}", _percent(one.fields[name].exact)]


def _text_caption(scores: Mapping[str, StructuredScores], names: Iterable[str]) -> str:
    first = next(iter(scores.values()))
    said = [
        f"{name}: {text.rows} references have a text ({100 * text.empty_references:.1f} % are empty), of "
        f"{text.reference_words:.1f} words on average"
        for name in names
        if (text := first.texts.get(name))
    ]
    caption = "percent; R: ROUGE F1, which like METEOR and BLEU is over references that have a text"
    return ". ".join([caption, "; ".join(said)]) if said else caption


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) >= 1000 else f"{round(value, 2) + 0.0:.2f}"


def _table(title: str | None, caption: str, first: str, headers: list[str]) -> Table:
    table = Table(
        title=title, box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), caption=caption, caption_justify="left"
    )
    table.add_column(first, overflow="fold")  # a long name takes a second line, and no number is cut
    for header in headers:
        table.add_column(escape(header), justify="right", no_wrap=True)
    return table

"""All that is measured of structured answers: each field, each row, and the whole. Never imports mlx."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mlx_sumrl.config.matching import MatchingConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.evaluation.structured_baselines import baseline_answers
from mlx_sumrl.evaluation.structured_fields import (
    FieldRows,
    FieldScore,
    as_number,
    field_kind,
    field_rows,
    field_score,
    fields_of,
    macro_f1,
    micro_f1,
)
from mlx_sumrl.evaluation.structured_text import TextScore, text_rows, text_score

LIST_METRICS = ("precision", "recall", "f1", "jaccard")


@dataclass(frozen=True, slots=True)
class StructuredScores:
    """N answers against N references."""

    summary: dict[str, float]
    """``rows`` (how many); ``valid`` (share); ``exact_match`` (share of rows all of whose fields are exact);
    ``field_f1_micro`` and ``field_f1_macro`` over fields of all kinds; and, where there are lists, their ``precision``,
    ``recall``, ``f1`` and ``jaccard``: means over rows, then over the fields that are lists."""
    fields: dict[str, FieldScore]
    """Field -> its score."""
    texts: dict[str, TextScore]
    """The same for fields of free text."""
    metrics: tuple[dict[str, float | None], ...]
    """Of each row [N]: ``valid`` and ``exact_match`` (0 or 1), the means of its lists' `LIST_METRICS`, and of each
    field ``FIELD/exact`` and, as its kind has it, ``FIELD/f1`` (and so on), ``FIELD/error`` (said - expected),
    ``FIELD/absolute_error``, ``FIELD/rougeL`` (and so on)."""
    errors: dict[str, tuple[dict[str, float | int], ...]]
    """Field of numbers -> ``row`` (from 0), ``said``, ``expected`` and ``error`` of each row that has both."""

    def to_json(self) -> dict[str, Any]:
        """Summary and fields as plain JSON values; a text's scores are under its field's ``text``, what a number is off
        by under ``errors``."""
        fields = {name: score.to_json() for name, score in self.fields.items()}
        for name, text in self.texts.items():
            fields[name]["text"] = text.to_json()
        for name, errors in self.errors.items():
            fields[name]["errors"] = [one["error"] for one in errors]
        return {"summary": dict(self.summary), "fields": fields}


def score_answers(
    references: Sequence[Any],
    answers: Sequence[Any],
    matching: MatchingConfig,
    fields: Iterable[str] = (),
    valid: Sequence[bool] | None = None,
) -> StructuredScores:
    """Score N answers; None is no usable answer, and then every field is missing.

    Args:
        references: what the rows should have said [N].
        answers: what they said [N].
        matching: when an item is right.
        fields: names to begin with, in this order.
        valid: whether each is valid [N]; by default those that are there are.

    Raises:
        ValueError: no rows, or another number of answers.
        UserError: `matching` names a field to match softly that is no list.
    """
    check_soft_fields(references, matching)
    found = field_rows(references, answers, fields, matching)
    valid = [answer is not None for answer in answers] if valid is None else valid
    scores = {field.name: field_score(field) for field in found}
    measured = {
        field.name: text_rows(field)
        for field in found
        if field.kind == "text" and field.name in matching.text_fields
    }
    texts = {field.name: text_score(field, measured[field.name]) for field in found if field.name in measured}
    differences = {field.name: field.errors() for field in found if field.kind == "number"}
    metrics: list[dict[str, float | None]] = []
    for row, is_valid in enumerate(valid):
        exact = all(field.overlaps[row].identical for field in found)
        own: dict[str, float | None] = {"valid": float(is_valid), "exact_match": float(exact)}
        own |= _list_means(found, row)
        for field in found:
            own |= _agreement(field, row)
            if field.kind == "number":
                error = differences[field.name][row]
                own[f"{field.name}/error"] = error
                own[f"{field.name}/absolute_error"] = None if error is None else abs(error)
            if field.name in measured:
                own |= {f"{field.name}/{name}": value for name, value in measured[field.name][row].items()}
        metrics.append(own)
    errors = {
        field.name: tuple(_errors(field, differences[field.name]))
        for field in found
        if field.name in differences
    }
    means = (*LIST_METRICS, "valid", "exact_match")
    summary = {
        "rows": float(len(metrics)),
        **{name: fmean(row[name] or 0.0 for row in metrics) for name in means if name in metrics[0]},
        "field_f1_micro": micro_f1(scores.values()),
        "field_f1_macro": macro_f1(scores.values()),
    }
    return StructuredScores(summary, scores, texts, tuple(metrics), errors)


def score_baselines(
    references: Sequence[Any], matching: MatchingConfig, fields: Iterable[str] = ()
) -> dict[str, StructuredScores]:
    """The same of answers that never look at a document; see `baseline_answers`."""
    fields = tuple(fields)
    return {
        name: score_answers(references, [answer] * len(references), matching, fields)
        for name, answer in baseline_answers(references).items()
    }


def numeric_errors(ids: Sequence[str], scores: StructuredScores) -> dict[str, list[dict[str, Any]]]:
    """Field of numbers -> id, said, expected and error of each row that has both: what a histogram is drawn of."""
    return {
        name: [{"id": ids[int(error["row"])], **error} for error in errors]
        for name, errors in scores.errors.items()
    }


def check_soft_fields(references: Sequence[Any], matching: MatchingConfig) -> None:
    """Raises `UserError` for a field to match softly that is no list in the references [N]."""
    rows = [fields_of(reference) for reference in references]
    kinds = {
        name: field_kind(row.get(name) for row in rows)
        for name in dict.fromkeys(name for row in rows for name in row)
    }
    for name in matching.soft_fields:
        if kinds.get(name) != "list":
            lists = ", ".join(name for name, kind in kinds.items() if kind == "list") or "none"
            raise UserError(
                f"soft_fields has {name!r}, which is no list; the fields that are lists are: {lists}"
            )


def _list_means(found: Sequence[FieldRows], row: int) -> dict[str, float | None]:
    lists = [field.overlaps[row] for field in found if field.kind == "list"]
    return {name: fmean(getattr(one, name) for one in lists) for name in LIST_METRICS} if lists else {}


def _agreement(field: FieldRows, row: int) -> dict[str, float | None]:
    agreement = field.overlaps[row]
    found: dict[str, float | None] = {f"{field.name}/exact": float(agreement.identical)}
    if field.kind == "list":
        found |= {f"{field.name}/{name}": getattr(agreement, name) for name in LIST_METRICS}
    return found


def _errors(field: FieldRows, differences: Sequence[float | None]) -> Iterable[dict[str, float | int]]:
    for row, error in enumerate(differences):
        said, expected = as_number(field.said[row]), as_number(field.expected[row])
        if error is not None and said is not None and expected is not None:
            yield {"row": row, "said": said, "expected": expected, "error": error}

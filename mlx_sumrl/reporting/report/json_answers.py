"""What files of structured answers say, in one shape for the figures. Never imports mlx."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

VALIDITY = ("valid", "repaired", "around", "several", "absent", "unfinished", "missing")
"""Shares that a summary may hold, in the order of the bars."""


PARTS = ("precision", "recall", "f1")
"""Numbers of a field; `FieldNumbers` has them in this order."""


@dataclass(frozen=True)
class FieldNumbers:
    """How right one field is."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class AnswerRow:
    """One answer, as far as it is compared."""

    id: str
    metrics: Mapping[str, float | None]


@dataclass(frozen=True)
class ScoredAnswers:
    """The rows of one file; what statistics compare."""

    rows: tuple[AnswerRow, ...]


@dataclass(frozen=True)
class JsonAnswers:
    """One evaluation of JSON answers."""

    rows: int
    validity: Mapping[str, float]
    """Share of the answers, by name of `VALIDITY`."""
    fields: Mapping[str, FieldNumbers] = field(default_factory=dict)
    errors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Number field -> answer minus reference, row by row."""
    consistency: Mapping[str, float] = field(default_factory=dict)
    """Field -> how much its samples of one row differ; 0 where all are the same."""
    scored: ScoredAnswers = ScoredAnswers(())
    """Where rows were scored one by one; of answers that never look at the document none are kept."""
    blind: Mapping[str, JsonAnswers] = field(default_factory=dict)
    """What answers that never look at the document would get, by what they always say."""


def read_json_answers(content: Mapping[str, Any]) -> JsonAnswers | None:
    """What one evaluation's JSON says; None where it is none of structured answers."""
    fields, summary = content.get("fields"), content.get("summary")
    if not isinstance(fields, Mapping) or not isinstance(summary, Mapping):
        return None
    named = {name: numbers for name, one in fields.items() if (numbers := _numbers(one)) is not None}
    return JsonAnswers(
        rows=int(summary.get("rows", 0)),
        validity={name: float(summary[name]) for name in VALIDITY if _is_number(summary.get(name))},
        fields=named,
        errors={name: errors for name, one in fields.items() if (errors := _errors(one))},
        consistency=_consistency(content),
        scored=_scored(content.get("rows")),
        blind={
            str(name): found
            for name, held in (content.get("baselines") or {}).items()
            if isinstance(held, Mapping) and (found := read_json_answers(held)) is not None
        },
    )


def _scored(rows: Any) -> ScoredAnswers:
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) and "metrics" in row for row in rows):
        return ScoredAnswers(())
    return ScoredAnswers(tuple(AnswerRow(str(row["id"]), row["metrics"]) for row in rows))


def _numbers(one: Any) -> FieldNumbers | None:
    """Means over the rows, in which two empty lists agree; of older files those over all items."""
    for suffix in ("_mean", "") if isinstance(one, Mapping) else ():
        found = [float(one[key]) for name in PARTS if _is_number(one.get(key := f"{name}{suffix}"))]
        if len(found) == len(PARTS):
            return FieldNumbers(*found)
    return None


def _errors(one: Any) -> tuple[float, ...]:
    errors = one.get("errors") if isinstance(one, Mapping) else None
    if not isinstance(errors, list | tuple):
        return ()
    return tuple(float(value) for value in errors if _is_number(value))


def _consistency(content: Mapping[str, Any]) -> dict[str, float]:
    held = content.get("consistency")
    if not isinstance(held, Mapping):
        return {}
    return {str(name): float(value) for name, value in held.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))

"""How many fields of structured answers are right. Never imports mlx.

A field that is a list counts as a set of items; any other field, an object too, is one item. When an item is right,
`MatchingConfig` says. A list is in agreement with an empty reference where it is empty too; a field that is left out
is not empty, and agrees only with a reference that leaves it out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

from mlx_sumrl.config.matching import MatchingConfig
from mlx_sumrl.metrics.lists import Overlap, item_key, overlap, soft_overlap
from mlx_sumrl.metrics.numbers import NumberScore
from mlx_sumrl.metrics.rouge import rouge_scorer

WHOLE = "answer"
"""The one field of an answer that is no object."""
FieldKind = Literal["list", "number", "boolean", "text", "other"]
"""What a field's values are; `other` are objects, nulls, and values of several kinds."""


@dataclass(frozen=True, slots=True)
class FieldRows:
    """One field of N rows."""

    name: str
    kind: FieldKind
    matching: str
    """When an item is right, in words."""
    expected: tuple[Any, ...]
    """What the references have [N]; None where the field is left out."""
    said: tuple[Any, ...]
    """What the answers have [N]; None where it is left out, or there is no usable answer."""
    overlaps: tuple[Overlap, ...]
    """[N]"""

    def errors(self) -> list[float | None]:
        """said - expected of each row, where both are numbers; [N], of a field of numbers."""
        numbers = zip(map(as_number, self.said), map(as_number, self.expected), strict=True)
        return [None if one is None or wanted is None else one - wanted for one, wanted in numbers]


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldScore(Overlap):
    """Of one field in all rows. Its own precision, recall, F1 and Jaccard are over the items of all rows (micro)."""

    kind: FieldKind
    matching: str
    """When an item is right, in words."""
    exact: float
    """Share of rows whose answer has all items of the reference and no others; an empty list can be exact."""
    answered: float
    """Share of rows that have the field at all."""
    precision_mean: float
    """Mean of the rows' own precision; so with the next three."""
    recall_mean: float
    f1_mean: float
    jaccard_mean: float
    both_empty: float
    """Share of rows that agree on an empty list: what is to be had for nothing."""
    numbers: NumberScore | None = None
    """Of a field of numbers."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, with the micro scores."""
        content = asdict(self)
        content.pop("one_missing")
        micro = {name: getattr(self, name) for name in ("precision", "recall", "f1", "jaccard")}
        return {**content, **micro}


def field_rows(
    references: Sequence[Any],
    answers: Sequence[Any],
    fields: Iterable[str] = (),
    matching: MatchingConfig | None = None,
) -> list[FieldRows]:
    """Each field's values beside those expected, and how they agree.

    Args:
        references: what the rows should have said [N].
        answers: what they said [N]; None where there is nothing usable, and then every field is missing.
        fields: names to begin with, in this order; those that only references or answers have follow.
        matching: when an item is right; exactly the same item by default.

    Raises:
        ValueError: no rows, or another number of answers.
    """
    if not references or len(references) != len(answers):
        raise ValueError(f"got {len(references)} references and {len(answers)} answers")
    matching = matching or MatchingConfig()
    wanted = [fields_of(reference) for reference in references]
    given = [{} if answer is None else fields_of(answer) for answer in answers]
    names = dict.fromkeys([*fields, *(name for row in (*wanted, *given) for name in row)])
    return [_field(name, wanted, given, matching) for name in names]


def field_score(rows: FieldRows) -> FieldScore:
    """One field's score over its rows."""
    overlaps = rows.overlaps
    numbers = None
    if rows.kind == "number":
        numbers = NumberScore.of([*map(as_number, rows.said)], [*map(as_number, rows.expected)])
    return FieldScore(
        right=sum(one.right for one in overlaps),
        said=sum(one.said for one in overlaps),
        expected=sum(one.expected for one in overlaps),
        kind=rows.kind,
        matching=rows.matching,
        exact=fmean(one.identical for one in overlaps),
        answered=fmean(said is not None for said in rows.said),
        precision_mean=fmean(one.precision for one in overlaps),
        recall_mean=fmean(one.recall for one in overlaps),
        f1_mean=fmean(one.f1 for one in overlaps),
        jaccard_mean=fmean(one.jaccard for one in overlaps),
        both_empty=fmean(said == wanted == [] for said, wanted in zip(rows.said, rows.expected, strict=True)),
        numbers=numbers,
    )


def field_scores(
    references: Sequence[Any],
    answers: Sequence[Any],
    fields: Iterable[str] = (),
    matching: MatchingConfig | None = None,
) -> dict[str, FieldScore]:
    """The score of each field; see `field_rows`."""
    return {rows.name: field_score(rows) for rows in field_rows(references, answers, fields, matching)}


def micro_f1(scores: Iterable[FieldScore]) -> float:
    """F1 over the items of all fields together: a field with more items weighs more."""
    each = list(scores)
    return Overlap(
        sum(one.right for one in each), sum(one.said for one in each), sum(one.expected for one in each)
    ).f1


def macro_f1(scores: Iterable[FieldScore]) -> float:
    """The mean of the fields' F1: each weighs the same."""
    return fmean(one.f1 for one in scores)


def field_kind(values: Iterable[Any]) -> FieldKind:
    """What the values of a field are; those that are None say nothing."""
    kinds = {_kind(value) for value in values if value is not None}
    return kinds.pop() if len(kinds) == 1 else "other"


def as_number(value: Any) -> float | None:
    """A finite number that is no truth value; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of more than 308 digits
        return None
    return number if math.isfinite(number) else None


def similar(said: str, expected: str) -> float:
    """ROUGE-L F1 of two short texts."""
    return float(_ROUGE_L.score(expected, said)["rougeL"].fmeasure)


_ROUGE_L = rouge_scorer("rougeL")


def _kind(value: Any) -> FieldKind:
    if isinstance(value, bool):
        return "boolean"
    kinds: tuple[tuple[FieldKind, type | tuple[type, ...]], ...] = (
        ("list", list),
        ("number", (int, float)),
        ("text", str),
    )
    return next((kind for kind, types in kinds if isinstance(value, types)), "other")


def fields_of(value: Any) -> dict[str, Any]:
    """An answer's fields; an answer that is no object is one field, `WHOLE`."""
    return value if isinstance(value, dict) else {WHOLE: value}


_ABSENT = object()


def _field(
    name: str, wanted: Sequence[dict[str, Any]], given: Sequence[dict[str, Any]], matching: MatchingConfig
) -> FieldRows:
    expected, said = ([row.get(name, _ABSENT) for row in rows] for rows in (wanted, given))
    held = [value for value in expected if value is not _ABSENT]
    kind = field_kind(held or [value for value in said if value is not _ABSENT])
    soft = kind == "list" and name in matching.soft_fields
    words = (
        f"soft: ROUGE-L F1 of at least {matching.soft_threshold:g}, one to one" if soft else matching.matching
    )
    overlaps = tuple(
        _value_overlap(one, other, matching, soft) for one, other in zip(said, expected, strict=True)
    )
    without = [tuple(None if value is _ABSENT else value for value in values) for values in (expected, said)]
    return FieldRows(name, kind, words, without[0], without[1], overlaps)


def _value_overlap(said: Any, expected: Any, matching: MatchingConfig, soft: bool = False) -> Overlap:
    """Lists are sets of items, anything else is one item."""
    if soft and isinstance(said, list) and isinstance(expected, list):
        texts = [
            [item if isinstance(item, str) else item_key(item) for item in value]
            for value in (said, expected)
        ]
        return soft_overlap(texts[0], texts[1], matching.soft_threshold, similar)
    keys = [() if value is _ABSENT else _keys(value, matching) for value in (said, expected)]
    found = overlap(*keys)
    if (said is _ABSENT) != (expected is _ABSENT):
        return Overlap(found.right, found.said, found.expected, one_missing=True)
    return found


def _keys(value: Any, matching: MatchingConfig) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [item_key(item, matching.matching) for item in items]

"""Several answers to one question: how much do they agree? Never imports mlx.

Only usable answers are compared, and only questions with at least two of them; the others are counted.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from mlx_sumrl.config.matching import MatchingConfig
from mlx_sumrl.evaluation.structured_fields import FieldKind, as_number, fields_of
from mlx_sumrl.metrics.lists import item_key, mean_pairwise_jaccard
from mlx_sumrl.metrics.numbers import coefficient_of_variation


@dataclass(frozen=True, slots=True)
class FieldConsistency:
    """Of one field; means over the questions that were compared."""

    identical: float
    """Share of questions whose answers all say the same, the order in lists aside."""
    variation: float | None
    """Coefficient of variation of numbers; None for other fields, and where no question has one."""
    jaccard: float | None
    """Mean pairwise Jaccard of lists; None for other fields."""
    values: tuple[float | None, ...]
    """Of each question, in the order of `Consistency.ids`: its variation, Jaccard, or 0 or 1 for identical."""


@dataclass(frozen=True, slots=True)
class Consistency:
    """Of all questions with several answers."""

    ids: tuple[str, ...]
    """The questions that were compared."""
    left_out: int
    """Questions with fewer than two usable answers."""
    least: int
    """Usable answers of the question, among those compared, that has fewest; 0 where none was compared."""
    most: int
    identical: float | None
    """Share of questions all of whose answers are the same in all fields; None where none was compared."""
    fields: dict[str, FieldConsistency]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def consistency(
    ids: Sequence[str], answers: Sequence[Any], kinds: Mapping[str, FieldKind], matching: MatchingConfig
) -> Consistency:
    """How much the answers to each id agree.

    Args:
        ids: what each answer is to [N].
        answers: [N]; None is no usable answer.
        kinds: the fields to compare.
        matching: when two items are the same; exactly so in `soft_fields` too, since samples have no reference.
    """
    usable: dict[str, list[dict[str, Any]]] = {one: [] for one in ids}
    for one, answer in zip(ids, answers, strict=True):
        if answer is not None:
            usable[one].append(fields_of(answer))
    compared = {one: rows for one, rows in usable.items() if len(rows) > 1}
    same = {name: [_same(name, rows, matching) for rows in compared.values()] for name in kinds}
    sizes = [len(rows) for rows in compared.values()]
    return Consistency(
        ids=tuple(compared),
        left_out=len(usable) - len(compared),
        least=min(sizes, default=0),
        most=max(sizes, default=0),
        identical=fmean(map(all, zip(*same.values(), strict=True))) if compared and kinds else None,
        fields={
            name: _field(name, kind, [*compared.values()], same[name], matching)
            for name, kind in kinds.items()
            if compared
        },
    )


def _field(
    name: str,
    kind: FieldKind,
    questions: Sequence[Sequence[dict[str, Any]]],
    same: Sequence[bool],
    matching: MatchingConfig,
) -> FieldConsistency:
    values: list[float | None]
    variation = jaccard = None
    if kind == "number":
        numbers = [[as_number(row.get(name)) for row in rows] for rows in questions]
        values = [coefficient_of_variation([one for one in row if one is not None]) for row in numbers]
        variation = _mean(values)
    elif kind == "list":
        lists = [[row[name] for row in rows if isinstance(row.get(name), list)] for rows in questions]
        values = [mean_pairwise_jaccard([_keys(one, matching) for one in row]) for row in lists]
        jaccard = _mean(values)
    else:
        values = [float(one) for one in same]
    return FieldConsistency(fmean(same), variation, jaccard, tuple(values))


def _same(name: str, rows: Sequence[dict[str, Any]], matching: MatchingConfig) -> bool:
    said: set[Hashable] = {
        None
        if name not in row
        else frozenset(_keys(row[name], matching))
        if isinstance(row[name], list)
        else item_key(row[name], matching.matching)
        for row in rows
    }
    return len(said) == 1


def _keys(items: list[Any], matching: MatchingConfig) -> list[str]:
    return [item_key(item, matching.matching) for item in items]


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if there else None

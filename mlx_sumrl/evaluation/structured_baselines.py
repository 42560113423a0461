"""What answers that never look at their document would get: so that nobody is impressed by agreement on empties.
Never imports mlx.

Both are made from the very references that they are then held against, which no predictor can see: they know the mean
number, or the commonest items, a little better than they could.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any

from mlx_sumrl.evaluation.structured_fields import FieldKind, as_number, field_kind, fields_of
from mlx_sumrl.metrics.lists import item_key

ALWAYS_EMPTY = "always empty"
CONSTANT = "constant"
SAYS = (
    f"{ALWAYS_EMPTY}: valid JSON, empty lists and texts, the mean of the references' numbers; {CONSTANT}: their "
    "commonest items, as many as half of them have, the median number, the commonest of anything else"
)
"""For people."""


def baseline_answers(references: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """`ALWAYS_EMPTY` and `CONSTANT` -> the one answer that it gives to everything.

    A field is in it where at least half of the references have it.
    """
    rows = [fields_of(reference) for reference in references]
    names = dict.fromkeys(name for row in rows for name in row)
    answers: dict[str, dict[str, Any]] = {ALWAYS_EMPTY: {}, CONSTANT: {}}
    for name in names:
        held = [row[name] for row in rows if name in row]
        if 2 * len(held) >= len(rows):
            kind = field_kind(held)
            answers[ALWAYS_EMPTY][name] = _empty(held, kind)
            answers[CONSTANT][name] = _constant(held, kind)
    return answers


def _empty(held: Sequence[Any], kind: FieldKind) -> Any:
    numbers = _numbers(held)
    if kind == "number" and numbers:
        return fmean(numbers)
    return {"list": [], "text": "", "boolean": False}.get(kind)


def _constant(held: Sequence[Any], kind: FieldKind) -> Any:
    numbers = _numbers(held)
    if kind == "number" and numbers:
        return median(numbers)
    if kind == "list":
        lists = [value for value in held if value is not None]
        size = int(median(len(set(map(item_key, items))) for items in lists))
        return _commonest([item for items in lists for item in _distinct(items)], size)
    return _commonest(held, 1)[0]


def _numbers(held: Sequence[Any]) -> list[float]:
    return [number for number in map(as_number, held) if number is not None]


def _distinct(items: Sequence[Any]) -> list[Any]:
    return list({item_key(item): item for item in items}.values())


def _commonest(items: Sequence[Any], most: int) -> list[Any]:
    """The items that are there most often, the first of equals."""
    values = {item_key(item): item for item in reversed(items)}
    return [values[key] for key, _ in Counter(map(item_key, items)).most_common(most)]

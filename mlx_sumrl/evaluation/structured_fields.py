"""How many fields of structured answers are right.

A field that is a list counts as a set of items; any other field, an object too, is one item. An item is right where
the reference has exactly the same: case, spaces and type count, 10 and 10.0 are one number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

WHOLE = "answer"
"""The one field of an answer that is no object."""


@dataclass(frozen=True, slots=True)
class FieldScore:
    """Of one field in all rows, or of several together."""

    right: int
    """Items that answer and reference share."""
    said: int
    """Items of the answers."""
    expected: int
    """Items of the references."""
    exact: float
    """Share of rows whose answer has all items of the reference and no others; an empty list can be exact."""

    @property
    def precision(self) -> float:
        """Share of what was said that is right; 1 where nothing was said."""
        return self.right / self.said if self.said else 1.0

    @property
    def recall(self) -> float:
        """Share of what was expected that was said; 1 where nothing was expected."""
        return self.right / self.expected if self.expected else 1.0

    @property
    def f1(self) -> float:
        """2 right / (said + expected), over the items of all rows; 1 where there are none."""
        items = self.said + self.expected
        return 2 * self.right / items if items else 1.0


def field_scores(
    references: Sequence[Any], answers: Sequence[Any], fields: Iterable[str] = ()
) -> dict[str, FieldScore]:
    """The score of each field.

    Args:
        references: what the rows should have said [N].
        answers: what they said [N]; None where there is nothing usable, and then every field is missing.
        fields: names to begin with, in this order; those that only references or answers have follow.

    Raises:
        ValueError: no rows, or another number of answers.
    """
    if not references or len(references) != len(answers):
        raise ValueError(f"got {len(references)} references and {len(answers)} answers")
    wanted = [_items(reference) for reference in references]
    given = [{} if answer is None else _items(answer) for answer in answers]
    names = dict.fromkeys([*fields, *(name for row in (*wanted, *given) for name in row)])
    scores = {}
    for name in names:
        pairs = [(row.get(name), said.get(name)) for row, said in zip(wanted, given, strict=True)]
        scores[name] = FieldScore(
            right=sum(len((row or frozenset()) & (said or frozenset())) for row, said in pairs),
            said=sum(len(said or ()) for _, said in pairs),
            expected=sum(len(row or ()) for row, _ in pairs),
            exact=sum(row == said for row, said in pairs) / len(pairs),
        )
    return scores


def micro_f1(scores: Iterable[FieldScore]) -> float:
    """F1 over the items of all fields together: a field with more items weighs more."""
    each = list(scores)
    total = FieldScore(
        sum(one.right for one in each), sum(one.said for one in each), sum(one.expected for one in each), 0.0
    )
    return total.f1


def macro_f1(scores: Iterable[FieldScore]) -> float:
    """The mean of the fields' F1: each weighs the same."""
    each = [one.f1 for one in scores]
    return sum(each) / len(each)


def _items(value: Any) -> dict[str, frozenset[str]]:
    """Field -> its items; a field that is left out is not there, an empty list has none."""
    fields = value if isinstance(value, dict) else {WHOLE: value}
    return {
        name: frozenset(map(_key, held)) if isinstance(held, list) else frozenset({_key(held)})
        for name, held in fields.items()
    }


def _key(value: Any) -> str:
    """The same text for the same value, whatever the order of its keys."""
    return json.dumps(_plain(value), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value

"""What one split knows of another. Never imports mlx.

Invariant: a row leaks when a row of a split that is held out more (test more than validation, validation more than
train) has the same document, nearly the same, or the same group; without the leaking rows no split leaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mlx_sumrl.data.declared_sources import SPLITS, SplitName
from mlx_sumrl.data.duplicates import Duplicates, NearPair
from mlx_sumrl.data.prepared_row import PreparedRow
from mlx_sumrl.errors import UserError

LeakKind = Literal["exact", "near", "group"]
SHOWN = 3
"""Examples in a sentence."""


@dataclass(frozen=True, slots=True)
class Leak:
    """One row, and one that is held out more."""

    kind: LeakKind
    row: int
    """Index of the row that leaks: the one to leave out."""
    held_out: int
    """Index of the row of the other split."""
    similarity: float = 1.0


def find_leaks(
    splits: Sequence[SplitName], duplicates: Duplicates, groups: Sequence[str | None]
) -> list[Leak]:
    """Every row that leaks, once for each kind and each near duplicate."""
    leaks = [leak for same in duplicates.exact for leak in _within("exact", same, splits)]
    copies = {same[0]: same for same in duplicates.exact}
    for pair in duplicates.near:
        first = copies.get(pair.first, [pair.first])
        second = copies.get(pair.second, [pair.second])
        leaks += [*_across(pair, first, second, splits), *_across(pair, second, first, splits)]
    by_group: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        if group is not None:
            by_group.setdefault(group, []).append(row)
    leaks += [leak for rows in by_group.values() for leak in _within("group", rows, splits)]
    return leaks


def refuse(leaks: Sequence[Leak], rows: Sequence[PreparedRow], splits: Sequence[SplitName]) -> None:
    """One sentence about leaks, if there are any.

    Raises:
        UserError: there are.
    """
    if not leaks:
        return
    leaking = {leak.row for leak in leaks}
    kinds = "; ".join(
        f"{len({leak.row for leak in found})} {said}: {_examples(found, rows, splits)}"
        for kind, said in (("exact", "exact"), ("near", "near"), ("group", "by group"))
        if (found := [leak for leak in leaks if leak.kind == kind])
    )
    raise UserError(
        f"{len(leaking)} of {len(rows)} rows leak into a split that is held out from them ({kinds}): --leakage "
        "drop leaves them out, --leakage allow only writes them into the card"
    )


def _examples(leaks: Sequence[Leak], rows: Sequence[PreparedRow], splits: Sequence[SplitName]) -> str:
    shown = ", ".join(
        f"{rows[leak.row].id} of {splits[leak.row]} and {rows[leak.held_out].id} of {splits[leak.held_out]}"
        + (f" at {leak.similarity:.2f}" if leak.kind == "near" else "")
        for leak in leaks[:SHOWN]
    )
    return shown + (", ..." if len(leaks) > SHOWN else "")


def _rank(row: int, splits: Sequence[SplitName]) -> int:
    return SPLITS.index(splits[row])


def _within(kind: LeakKind, rows: Sequence[int], splits: Sequence[SplitName]) -> list[Leak]:
    most = max(rows, key=lambda row: _rank(row, splits))
    return [Leak(kind, row, most) for row in rows if _rank(row, splits) < _rank(most, splits)]


def _across(
    pair: NearPair, rows: Sequence[int], others: Sequence[int], splits: Sequence[SplitName]
) -> list[Leak]:
    most = max(others, key=lambda row: _rank(row, splits))
    return [
        Leak("near", row, most, pair.similarity) for row in rows if _rank(row, splits) < _rank(most, splits)
    ]

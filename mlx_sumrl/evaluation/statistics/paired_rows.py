"""Results of the same rows, lined up: one metric's numbers by seed and row.

Invariant: two rows are beside each other only if they have the same id; what has no finite number in one of the
results is left out of all of them, and counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

import numpy as np

from mlx_sumrl.errors import UserError

NAMED = 3
"""Ids that a message names."""


class ScoredRow(Protocol):
    """A row of an evaluation, as far as it is compared; one that has a ``length`` is compared by that, too."""

    @property
    def id(self) -> str: ...
    @property
    def metrics(self) -> Mapping[str, float | None]: ...


class Scored(Protocol):
    """An evaluation, as far as it is compared."""

    @property
    def rows(self) -> Sequence[ScoredRow]: ...


@dataclass(frozen=True, slots=True)
class PairedRows:
    """One metric of two results, S1 and S2 seeds, on the same N rows."""

    baseline_SN: np.ndarray
    other_SN: np.ndarray
    left_out: int
    """Rows without a number in one of them."""

    @property
    def differences(self) -> np.ndarray:
        """[N]: what the other has more, each row's seeds averaged; 12 decimals, beyond which there is only rounding,
        which would make of equal differences unequal ranks."""
        return np.asarray(np.round(self.other_SN.mean(axis=0) - self.baseline_SN.mean(axis=0), 12))


def paired_rows(baseline: Sequence[Scored], other: Sequence[Scored], metric: str) -> PairedRows:
    """One metric of two results (an evaluation per seed), row beside row in the order of the baseline's first.

    `check_same_rows` says whether they can be lined up at all.
    """
    tables = [_by_id(one, metric) for one in (*baseline, *other)]
    known = [id for id in tables[0] if all(table.get(id) is not None for table in tables)]
    values = np.array([[table[id] for id in known] for table in tables], dtype=np.float64)
    values = values.reshape(len(tables), len(known))
    return PairedRows(values[: len(baseline)], values[len(baseline) :], len(tables[0]) - len(known))


def check_same_rows(results: Mapping[str, Sequence[Scored]]) -> None:
    """Whether all results have the same rows, in whatever order.

    Raises:
        UserError: a result without evaluations or rows, or with other rows than the first; the first few are named.
    """
    expected: set[str] | None = None
    first = ""
    for name, evaluations in results.items():
        if not evaluations or not all(one.rows for one in evaluations):
            raise UserError(f"{name} has no rows to compare: leave it out, or evaluate it first")
        for seed, one in enumerate(evaluations):
            ids = {row.id for row in one.rows}
            said = name if len(evaluations) == 1 else f"{name} (number {seed + 1})"
            if expected is None:
                expected, first = ids, said
            elif ids != expected:
                raise UserError(
                    f"{first} and {said} are not of the same rows: {_missing(first, expected, said, ids)}; "
                    "evaluate both on the same file"
                )


def shared_metrics(results: Mapping[str, Sequence[Scored]]) -> tuple[str, ...]:
    """Names of the metrics of which every evaluation has a number in at least one row, and all in a common one; in the
    order of the first row, ``length`` first."""
    first = next(iter(results.values()))[0]
    names = dict.fromkeys(["length", *(name for row in first.rows for name in row.metrics)])
    found = []
    for name in names:
        tables = [_by_id(one, name) for evaluations in results.values() for one in evaluations]
        if any(all(table.get(id) is not None for table in tables) for id in tables[0]):
            found.append(name)
    return tuple(found)


def values_of(evaluation: Scored, metric: str) -> dict[str, float | None]:
    """Id -> the metric's number, None where there is no finite one; rows of one id are averaged."""
    return _by_id(evaluation, metric)


def _by_id(evaluation: Scored, metric: str) -> dict[str, float | None]:
    listed: dict[str, list[float | None]] = {}
    for row in evaluation.rows:
        listed.setdefault(row.id, []).append(_value(row, metric))
    return {id: _mean(values) for id, values in listed.items()}


def _value(row: ScoredRow, metric: str) -> float | None:
    value = row.metrics.get(metric)
    if value is None and metric == "length":
        value = getattr(row, "length", None)
    if value is None or not math.isfinite(value):
        return None
    return float(value)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _missing(first: str, expected: set[str], second: str, ids: set[str]) -> str:
    parts = [
        f"{len(only)} only in {name} ({_named(only)})"
        for name, only in ((first, expected - ids), (second, ids - expected))
        if only
    ]
    return ", ".join(parts)


def _named(ids: Iterable[str]) -> str:
    listed = sorted(ids)
    return ", ".join(listed[:NAMED]) + (", …" if len(listed) > NAMED else "")

"""Shares of rows (within, exact, valid): the interval of one, and two of the same rows compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

FEW_DISCORDANT = 25
"""Rows in which two policies differ below which McNemar's test is the exact one."""


@dataclass(frozen=True, slots=True)
class Mcnemar:
    """Rows that only one of two policies got right, and how likely so uneven a split is by chance."""

    only_baseline: int
    only_other: int
    p: float
    exact: bool
    """Whether p is from the binomial distribution; else from chi-squared, without continuity correction."""


def share_interval(successes: int, rows: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share, which holds near 0 and 1 too, by statsmodels; in [0, 1].

    Raises:
        ValueError: no rows, or more successes than rows.
    """
    if not 0 <= successes <= rows or rows < 1:
        raise ValueError(f"{successes} of {rows} rows is no share")
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, rows, alpha=1 - confidence, method="wilson")
    return max(float(low), 0.0), min(float(high), 1.0)


def mcnemar_test(baseline: Sequence[float], other: Sequence[float]) -> Mcnemar:
    """Whether two policies get another share of the same N rows right (McNemar 1947), by statsmodels; values 0 or 1.

    Exact where fewer than 25 rows differ, which rejects more seldom than its level; p is 1 where none does.

    Raises:
        ValueError: values other than 0 and 1, or not as many of one as of the other.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    both, only_baseline, only_other, neither = _table(baseline, other)
    discordant = only_baseline + only_other
    exact = discordant < FEW_DISCORDANT
    found = mcnemar([[both, only_baseline], [only_other, neither]], exact=exact, correction=False)
    return Mcnemar(only_baseline, only_other, min(float(found.pvalue), 1.0), exact)


def paired_share_interval(
    baseline: Sequence[float], other: Sequence[float], confidence: float
) -> tuple[float, float]:
    """The interval of ``share(other) - share(baseline)`` over the same N rows; values 0 or 1.

    Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on paired
    data", method 10: two Wilson intervals, joined with the rows' correlation. A bootstrap would give an interval of
    no width where every row changed, or none.

    Raises:
        ValueError: values other than 0 and 1, no rows, or not as many of one as of the other.
    """
    both, only_baseline, only_other, neither = _table(baseline, other)
    rows = len(baseline)
    right_before, right_after = both + only_baseline, both + only_other
    before, after = right_before / rows, right_after / rows
    low_before, high_before = share_interval(right_before, rows, confidence)
    low_after, high_after = share_interval(right_after, rows, confidence)
    product = right_before * (rows - right_before) * right_after * (rows - right_after)
    agreement = float(both * neither - only_baseline * only_other)
    if agreement > 0:
        agreement = max(agreement - rows / 2, 0.0)  # Newcombe's continuity correction of phi
    phi = agreement / sqrt(product) if product else 0.0

    def joined(one: float, two: float) -> float:
        return sqrt(max(one**2 - 2 * phi * one * two + two**2, 0.0))

    difference = after - before
    low = difference - joined(after - low_after, high_before - before)
    high = difference + joined(high_after - after, before - low_before)
    return max(low, -1.0), min(high, 1.0)


def is_yes_or_no(values: np.ndarray) -> bool:
    """Whether there is nothing but 0 and 1 in it."""
    return bool(np.isin(values, (0.0, 1.0)).all())


def _table(baseline: Sequence[float], other: Sequence[float]) -> tuple[int, int, int, int]:
    """Rows that both got right, only the baseline, only the other, neither."""
    baseline_N, other_N = np.asarray(baseline, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if len(baseline_N) != len(other_N) or not len(baseline_N):
        raise ValueError(f"got {len(baseline_N)} rows of the baseline and {len(other_N)} of the other")
    if not (is_yes_or_no(baseline_N) and is_yes_or_no(other_N)):
        raise ValueError("shares are compared by rows that are 0 or 1")
    one, two = baseline_N == 1, other_N == 1
    return int((one & two).sum()), int((one & ~two).sum()), int((~one & two).sum()), int((~one & ~two).sum())

"""Paired tests over rows, and over seeds, by scipy.

All take the last axis, so that many experiments can be tested at once. None stands for what does not exist: a t where
the differences have no spread, any test of one row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class RowTests:
    """Two tests of whether N paired differences are centred on 0, and how large the difference is."""

    t: float | None
    """Student's; None where the differences have no spread but are not 0, and for a single row."""
    p_t: float
    """1 where all differences are 0 and for a single row; that of Wilcoxon's where `t` is None otherwise."""
    w: float | None
    """Wilcoxon's: the smaller of the rank sums above and below 0, without the rows that differ by 0. None for a
    single row."""
    p_wilcoxon: float
    """1 where all differences are 0 and for a single row."""
    cohens_d: float | None
    """d_z: the mean difference over the standard deviation of the differences. None where that is 0, unless all
    differences are."""


def row_tests(difference_N: np.ndarray) -> RowTests:
    """Both tests of N differences, two-sided.

    Raises:
        ValueError: no differences, or some that are not finite.
    """
    if difference_N.ndim != 1 or not len(difference_N) or not np.isfinite(difference_N).all():
        raise ValueError(
            f"cannot test differences of shape {difference_N.shape}, or with some that are not finite"
        )
    if not difference_N.any():
        return RowTests(0.0, 1.0, 0.0, 1.0, 0.0)
    if len(difference_N) == 1:
        return RowTests(None, 1.0, None, 1.0, None)
    w, p_wilcoxon = wilcoxon(difference_N)
    if np.ptp(difference_N) == 0:
        return RowTests(None, float(p_wilcoxon), float(w), float(p_wilcoxon), None)
    t, p_t = paired_t(difference_N)
    d = difference_N.mean() / difference_N.std(ddof=1)
    return RowTests(float(t), float(p_t), float(w), float(p_wilcoxon), float(d))


def paired_t(difference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Student's paired t over the last axis, and its two-sided p. [..., N] -> [...] each."""
    from scipy.stats import ttest_1samp  # takes a second to import

    found = ttest_1samp(difference, 0.0, axis=-1)
    return np.asarray(found.statistic), np.asarray(found.pvalue)


def wilcoxon(difference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilcoxon's signed ranks over the last axis, and the two-sided p. [..., N] -> [...] each.

    Rows that differ by 0 are left out (Wilcoxon 1945); exact up to 50 rows without ties, and by all signs up to 13 with
    them, else by the normal approximation (scipy's choice).
    """
    from scipy.stats import wilcoxon as signed_ranks

    found = signed_ranks(difference, axis=-1)
    return np.asarray(found.statistic), np.asarray(found.pvalue)


def d_average(baseline_N: np.ndarray, other_N: np.ndarray) -> float | None:
    """The mean difference over the mean of the two results' standard deviations (Cumming 2012, d_av), which, unlike
    d_z, does not grow with how well rows are paired; None where neither has a spread, but for no difference."""
    difference = float(other_N.mean() - baseline_N.mean())
    if len(baseline_N) < 2:
        return None if difference else 0.0
    spread = float(baseline_N.std(ddof=1) + other_N.std(ddof=1)) / 2
    if spread < 1e-12:
        return None if abs(difference) > 1e-12 else 0.0
    return difference / spread


def seed_test(baseline_S: np.ndarray, other_S: np.ndarray) -> float | None:
    """Welch's two-sided p of two methods' means, one number per seed: the seeds are the unit, so it speaks of the
    methods and not only of these runs. None with fewer than two seeds of one.

    Where no seed differs from another of its own, 1 for equal means, and None otherwise.
    """
    if min(len(baseline_S), len(other_S)) < 2:
        return None
    if max(np.ptp(baseline_S), np.ptp(other_S)) < 1e-12:
        return 1.0 if abs(baseline_S.mean() - other_S.mean()) < 1e-12 else None
    from scipy.stats import ttest_ind_from_stats  # which takes a side without spread, too

    sides = [
        number for side in (other_S, baseline_S) for number in (side.mean(), side.std(ddof=1), len(side))
    ]
    return float(ttest_ind_from_stats(*sides, equal_var=False).pvalue)

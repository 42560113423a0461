"""Which metrics say the same: Spearman's rank correlation of each two over the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlx_sumrl.evaluation.statistics.paired_rows import Scored, values_of


@dataclass(frozen=True, slots=True)
class Correlations:
    """K metrics against each other."""

    metrics: tuple[str, ...]
    rho: tuple[tuple[float | None, ...], ...]
    """[K][K] in [-1, 1]; None where there are fewer than three rows with both, or one of the two never changes in
    them."""
    rows: tuple[tuple[int, ...], ...]
    """[K][K]: rows that have both."""


def correlations(evaluations: Sequence[Scored], metrics: Sequence[str]) -> Correlations:
    """Spearman's correlation (ties get their mean rank) of each two metrics over the rows of all ``evaluations``.

    Rows of several policies put together also correlate by what the policies do differently: give one policy's
    evaluation to ask about texts.
    """
    from scipy.stats import spearmanr

    columns = [
        np.array([value for one in evaluations for value in values_of(one, name).values()], dtype=np.float64)
        for name in metrics
    ]
    size = len(columns)
    rho: list[list[float | None]] = [[None] * size for _ in range(size)]
    rows = [[0] * size for _ in range(size)]
    for i, one in enumerate(columns):
        for j, two in enumerate(columns[: i + 1]):
            both = np.isfinite(one) & np.isfinite(two)
            rows[i][j] = rows[j][i] = int(both.sum())
            if both.sum() >= 3 and np.ptp(one[both]) > 0 and np.ptp(two[both]) > 0:
                found = 1.0 if i == j else float(spearmanr(one[both], two[both]).statistic)
                rho[i][j] = rho[j][i] = found
    return Correlations(tuple(metrics), tuple(map(tuple, rho)), tuple(map(tuple, rows)))

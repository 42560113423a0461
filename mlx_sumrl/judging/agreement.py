"""How far the judge agrees with people's scores: rank correlation and weighted kappa. Never imports mlx."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.config import JudgeConfig
from mlx_sumrl.data.sources import read_rows
from mlx_sumrl.errors import UserError
from mlx_sumrl.judging.criteria import CRITERIA, HIGHEST, LOWEST
from mlx_sumrl.judging.rows import check_column
from mlx_sumrl.judging.scores import JudgedRow

CONFIDENCE = 0.95
OVERALL = "overall"
"""Name of the comparison of an overall score with the mean of the four criteria."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Over the rows that both have a score for. Numbers are None where they are not defined, as for equal scores."""

    n: int
    spearman: float | None
    low: float | None
    high: float | None
    """Ends of Spearman's 95 % bootstrap interval (percentile)."""
    kendall: float | None
    """Tau-b."""
    kappa: float | None
    """Cohen's, with quadratic weights, on whole scores from 1 to 5, the judge's rounded to the nearest."""
    kappa_missing: str | None = None
    """Why there is no kappa."""


def agreement(judge: Sequence[float], labels: Sequence[float], *, resamples: int, seed: int) -> Agreement:
    """Of N scores of the judge, in [1, 5], with N labels.

    Raises:
        ValueError: not as many of one as of the other.
    """
    from scipy.stats import bootstrap, kendalltau, spearmanr  # take a second to import
    from statsmodels.stats.inter_rater import cohens_kappa

    if len(judge) != len(labels):
        raise ValueError(f"got {len(judge)} scores and {len(labels)} labels")
    n = len(judge)
    if n < 2 or len(set(judge)) == 1 or len(set(labels)) == 1:
        return Agreement(
            n, None, None, None, None, None, "one of them gives all rows the same score" if n else None
        )

    with warnings.catch_warnings():  # of an interval that is not taken from there
        warnings.simplefilter("ignore")
        sampled = bootstrap(
            (np.asarray(judge, dtype=np.float64), np.asarray(labels, dtype=np.float64)),
            _rank_correlations,
            paired=True,
            n_resamples=resamples,
            method="percentile",
            batch=max(1_000_000 // n, 1),  # numbers in memory at once
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    tail = (1 - CONFIDENCE) / 2
    # Samples in which all rows are alike have no correlation, and are left out.
    low, high = np.nanquantile(sampled, [tail, 1 - tail]) if np.isfinite(sampled).any() else (None, None)
    kappa, missing = None, None
    if all(float(label).is_integer() and LOWEST <= label <= HIGHEST for label in labels):
        table = np.zeros((HIGHEST, HIGHEST))
        for one, other in zip(judge, labels, strict=True):
            table[math.floor(one + 0.5) - LOWEST, int(other) - LOWEST] += 1
        kappa = _defined(cohens_kappa(table, wt="quadratic", return_results=False))
    else:
        missing = f"labels are not whole numbers from {LOWEST} to {HIGHEST}"
    return Agreement(
        n,
        _defined(spearmanr(judge, labels).statistic),
        _defined(low),
        _defined(high),
        _defined(kendalltau(judge, labels).statistic),
        kappa,
        missing,
    )


def _rank_correlations(
    one_BN: NDArray[np.float64], other_BN: NDArray[np.float64], axis: int
) -> NDArray[np.float64]:
    """Spearman's of each of B samples, shape [B]; NaN for one in which a score is the same in all rows."""
    from scipy.stats import rankdata

    ranks = [rankdata(values, axis=axis) for values in (one_BN, other_BN)]
    x, y = (values - values.mean(axis=axis, keepdims=True) for values in ranks)
    with np.errstate(invalid="ignore"):
        result: NDArray[np.float64] = (x * y).sum(axis) / np.sqrt((x**2).sum(axis) * (y**2).sum(axis))
    return result


@dataclass(frozen=True, slots=True)
class Labels:
    """People's scores."""

    path: Path
    columns: dict[str, str]
    """Criterion, or `OVERALL` -> its column."""
    scores: dict[str, dict[str, float]]
    """Row's id -> column -> score."""
    unusable: int
    """Rows that could not be read, have no id, or none of the scores."""


def read_labels(path: Path, config: JudgeConfig) -> Labels:
    """A file of labels.

    Raises `UserError` when it cannot be read, has no column of scores, or names a row twice.
    """
    rows = read_rows(str(path))
    check_column(rows.columns, config.id_column, path, "id_column")
    columns = {str(criterion): str(criterion) for criterion in CRITERIA if criterion in rows.columns}
    if config.label_column in rows.columns:
        columns[OVERALL] = config.label_column
    if not columns:
        raise UserError(
            f"{path} (--labels) has no column {config.label_column!r} and none named like a criterion "
            f"({', '.join(CRITERIA)}); its columns are {', '.join(rows.columns)}: give --label_column"
        )
    scores: dict[str, dict[str, float]] = {}
    unusable = 0
    for row in rows.rows:
        name = row.fields.get(config.id_column)
        held = {
            column: number
            for column in columns.values()
            if (number := _number(row.fields.get(column))) is not None
        }
        if name is None or not held:
            unusable += 1
        elif str(name) in scores:
            raise UserError(
                f"{path} (--labels) has row {str(name)!r} twice: give each row one label, as their mean"
            )
        else:
            scores[str(name)] = held
    return Labels(path, columns, scores, unusable)


def agreements(
    rows: Sequence[JudgedRow], labels: Labels, *, resamples: int, seed: int
) -> dict[str, Agreement]:
    """For each criterion with labels, and for an overall score.

    Raises `UserError` when no row has a label.
    """
    if not any(row.id in labels.scores for row in rows):
        raise UserError(
            f"no row of the evaluation has a label in {labels.path}: its ids are {', '.join(list(labels.scores)[:3])}, "
            f"those of the evaluation {', '.join(row.id for row in rows[:3])}; name the right column with --id_column"
        )
    found = {}
    for name, column in labels.columns.items():
        pairs = [
            (score, label)
            for row in rows
            if (score := _score(row, name)) is not None
            and (label := labels.scores.get(row.id, {}).get(column)) is not None
        ]
        judge = [score for score, _ in pairs]
        found[name] = agreement(judge, [label for _, label in pairs], resamples=resamples, seed=seed)
    return found


def _score(row: JudgedRow, name: str) -> float | None:
    """In [1, 5]."""
    if name == OVERALL:
        score = None if row.composite is None else row.composite / len(CRITERIA)
    else:
        score = {str(one): row.score(one) for one in CRITERIA}[name]
    return None if score is None else LOWEST + score * (HIGHEST - LOWEST)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _defined(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None

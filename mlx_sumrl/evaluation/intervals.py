"""Intervals of what one policy does better than another on the same rows.

The rows are drawn anew, each with both policies' numbers (paired bootstrap: Efron and Tibshirani 1993, chapter 14;
for text, Koehn 2004), by scipy, bias-corrected and accelerated (BCa).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_sumrl.evaluation.results import Evaluation

COMPARED = ("rouge1", "rouge2", "rougeL", "rougeL_recall", "meteor", "within", "repetition", "length")
"""Metrics of a row that are compared; ``length`` is in tokens, the others are in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Means over the rows, and the interval of their difference."""

    before: float
    after: float
    difference: float
    low: float
    high: float
    """Ends of the interval."""

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def paired_difference(
    before: Sequence[float], after: Sequence[float], *, resamples: int, confidence: float, seed: int
) -> Difference:
    """The mean of ``after - before`` over N rows, with its bootstrap interval; one seed gives one interval.

    Raises:
        ValueError: fewer than two rows, or not as many of one as of the other.
    """
    from scipy.stats import bootstrap  # takes a second to import

    if len(before) != len(after) or len(before) < 2:
        raise ValueError(f"got {len(before)} rows before and {len(after)} after; an interval needs two pairs")
    before_N, after_N = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    difference_N = after_N - before_N
    mean = float(difference_N.mean())
    low = high = mean
    if np.ptp(difference_N) > 0:  # else every sample has this mean, and BCa divides by 0
        interval = bootstrap(
            (difference_N,),
            np.mean,
            n_resamples=resamples,
            confidence_level=confidence,
            method="BCa",
            batch=max(1_000_000 // len(difference_N), 1),  # numbers in memory at once
            rng=np.random.default_rng(seed),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return Difference(float(before_N.mean()), float(after_N.mean()), mean, low, high)


def compare(
    before: Evaluation, after: Evaluation, *, resamples: int, confidence: float, seed: int
) -> dict[str, Difference]:
    """Each of `COMPARED` that both evaluations have, by name.

    Raises:
        ValueError: the rows of one are not those of the other, in the same order.
    """
    ids = [[row.id for row in one.rows] for one in (before, after)]
    if ids[0] != ids[1]:
        raise ValueError("two evaluations can be compared row by row only where they have the same rows")
    found = {}
    for name in COMPARED:
        pairs = [
            (_value(one, name), _value(two, name)) for one, two in zip(before.rows, after.rows, strict=True)
        ]
        known = [(one, two) for one, two in pairs if one is not None and two is not None]
        if len(known) == len(pairs):
            found[name] = paired_difference(
                [one for one, _ in known],
                [two for _, two in known],
                resamples=resamples,
                confidence=confidence,
                seed=seed,
            )
    return found


def _value(row: Any, name: str) -> float | None:
    if name == "length":
        return float(row.length)
    value: float | None = row.metrics[name]
    return value

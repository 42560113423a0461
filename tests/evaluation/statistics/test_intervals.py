"""Intervals of paired differences, against every sample there is and against numpy's own."""

from __future__ import annotations

from itertools import product
from statistics import NormalDist

import numpy as np
import pytest

from mlx_sumrl.evaluation.results import Evaluation, Row
from mlx_sumrl.evaluation.statistics import compare, paired_difference

OPTIONS = {"resamples": 9999, "confidence": 0.9, "seed": 0}


def bca_by_enumeration(values: list[float], confidence: float) -> tuple[float, float]:
    """Efron and Tibshirani 1993, equations 14.9 to 14.15, over all N^N samples instead of random ones."""
    normal = NormalDist()
    means = np.sort([np.mean(sample) for sample in product(values, repeat=len(values))])
    mean = np.mean(values)
    # Ties count half, as scipy has it.
    below = (np.sum(means < mean - 1e-12) + 0.5 * np.sum(abs(means - mean) <= 1e-12)) / len(means)
    bias = normal.inv_cdf(float(below))
    left_out = np.array([np.mean(np.delete(values, i)) for i in range(len(values))])
    away = left_out.mean() - left_out
    acceleration = np.sum(away**3) / (6 * np.sum(away**2) ** 1.5)

    def end(tail: float) -> float:
        z = bias + normal.inv_cdf(tail)
        return float(np.quantile(means, normal.cdf(bias + z / (1 - acceleration * z))))

    return end((1 - confidence) / 2), end((1 + confidence) / 2)


def test_it_is_the_interval_of_all_samples() -> None:
    before = [0.1, 0.4, 0.35, 0.8, 0.2, 0.5]
    after = [0.25, 0.45, 0.3, 0.95, 0.6, 0.52]
    found = paired_difference(before, after, **OPTIONS)
    low, high = bca_by_enumeration([b - a for a, b in zip(before, after, strict=True)], 0.9)
    assert found.difference == pytest.approx(np.mean(after) - np.mean(before))
    assert (found.before, found.after) == pytest.approx((np.mean(before), np.mean(after)))
    # 9,999 random samples of 46,656: the ends move by some thousandths.
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.012)
    assert found.clear == (low > 0)
    assert paired_difference(before, after, **OPTIONS) == found


def test_rows_are_paired() -> None:
    """Rows that differ a lot, all of which gain alike: as two groups nothing could be said of them."""
    generator = np.random.default_rng(1)
    before = generator.uniform(0, 1, 60)
    after = before + 0.02 + 0.002 * generator.standard_normal(60)
    found = paired_difference(before.tolist(), after.tolist(), **OPTIONS)
    assert found.clear
    spread = (after - before).std(ddof=1) / np.sqrt(60)
    assert found.high - found.low == pytest.approx(2 * 1.671 * spread, rel=0.1)  # Student's t at 59, 90 %


def test_it_holds_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    held = 0
    for trial in range(200):
        gains = generator.normal(0.1, 1, 40)
        found = paired_difference([0.0] * 40, gains.tolist(), resamples=499, confidence=0.8, seed=trial)
        held += found.low <= 0.1 <= found.high
    assert 0.7 < held / 200 < 0.9


def test_no_difference_and_no_rows() -> None:
    same = paired_difference([0.5, 0.7], [0.6, 0.8 - 1e-17], **OPTIONS)
    assert (same.low, same.high) == pytest.approx((0.1, 0.1))
    assert not paired_difference([0.5, 0.7], [0.5, 0.7], **OPTIONS).clear
    for before, after in (([1.0], [1.0]), ([1.0, 2.0], [1.0])):
        with pytest.raises(ValueError, match="rows before"):
            paired_difference(before, after, **OPTIONS)


def evaluation(ids: list[str], values: list[float], meteor: float | None = None) -> Evaluation:
    names = ("rouge1", "rouge2", "rougeL", "rougeL_recall", "within", "repetition")
    rows = [
        Row(name, "d", "r", "t", int(100 * value), "stop", dict.fromkeys(names, value) | {"meteor": meteor})
        for name, value in zip(ids, values, strict=True)
    ]
    return Evaluation(tuple(rows), {})


def test_evaluations_are_compared_row_by_row() -> None:
    before, after = evaluation(["a", "b", "c"], [0.1, 0.2, 0.3]), evaluation(["a", "b", "c"], [0.2, 0.2, 0.5])
    found = compare(before, after, **OPTIONS)
    assert "meteor" not in found, "there is no WordNet"
    assert found["rouge1"].difference == pytest.approx(0.1)
    assert found["length"].difference == pytest.approx(10)
    with pytest.raises(ValueError, match="same rows"):
        compare(before, evaluation(["a", "c", "b"], [0.2, 0.2, 0.5]), **OPTIONS)

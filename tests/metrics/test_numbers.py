"""Errors of numbers: by hand, and by formulas of numpy and scipy done another way."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mlx_sumrl.metrics.numbers import NumberScore, coefficient_of_variation


def test_by_hand() -> None:
    # errors 1, -1, 3, of expected 1, 3, 5 (mean 3, squared deviations 4 + 0 + 4)
    found = NumberScore.of([2, 2, 8, None, 7], [1, 3, 5, 9, None])
    assert (found.expected, found.answered) == (4, 3 / 4)
    assert found.mae == pytest.approx(5 / 3)
    assert found.rmse == pytest.approx((11 / 3) ** 0.5)
    assert found.median_error == 1
    assert found.bias == pytest.approx(1)
    assert found.r2 == pytest.approx(1 - 11 / 8)
    assert found.r2_missing is None


def test_perfect_and_the_mean() -> None:
    assert NumberScore.of([1, 2, 4], [1, 2, 4]).r2 == 1
    mean = NumberScore.of([3, 3, 3], [1, 3, 5])
    assert mean.r2 == 0
    assert mean.mae == pytest.approx(4 / 3)


def test_by_numpy_and_scipy() -> None:
    draw = np.random.default_rng(0)
    for size in (2, 7, 200):
        expected = draw.normal(50, 20, size)
        said = expected * draw.uniform(0.5, 1.2) + draw.normal(0, 9, size)
        found = NumberScore.of(said.tolist(), expected.tolist())
        assert found.mae == pytest.approx(np.linalg.norm(said - expected, 1) / size, rel=1e-12)
        assert found.rmse == pytest.approx(np.linalg.norm(said - expected) / size**0.5, rel=1e-12)
        assert found.median_error == pytest.approx(np.percentile(abs(expected - said), 50), rel=1e-12)
        # Mean squared error = variance of the error + its mean squared.
        error = stats.describe(said - expected, ddof=0)
        wanted = 1 - (error.variance + error.mean**2) / stats.describe(expected, ddof=0).variance
        assert found.r2 == pytest.approx(wanted, rel=1e-9)
    # The best line through the points has R² = the square of Pearson's correlation.
    line = stats.linregress(said, expected)
    fitted = NumberScore.of((line.intercept + line.slope * said).tolist(), expected.tolist())
    assert fitted.r2 == pytest.approx(line.rvalue**2, rel=1e-9)


def test_why_there_is_none() -> None:
    same = NumberScore.of([1, 2], [5, 5])
    assert (same.r2, same.r2_missing) == (None, "the expected numbers do not vary: they are all the same")
    assert same.mae == pytest.approx(3.5)
    one = NumberScore.of([1], [5])
    assert one.r2_missing == "the expected numbers do not vary: there is only one"
    none = NumberScore.of([None, None], [1, 2])
    assert (none.mae, none.rmse, none.median_error, none.bias, none.r2) == (None,) * 5
    assert (none.answered, none.r2_missing) == (0, "no row has a number")
    assert NumberScore.of([], []).answered == 0
    with pytest.raises(ValueError, match="zip"):
        NumberScore.of([1], [])


def test_variation() -> None:
    # mean 4, sample variance ((2-4)² + (4-4)² + (6-4)²) / 2 = 4
    assert coefficient_of_variation([2, 4, 6]) == pytest.approx(2 / 4)
    assert coefficient_of_variation([-2, -4, -6]) == pytest.approx(2 / 4)
    assert coefficient_of_variation([3, 3]) == 0
    assert coefficient_of_variation([0, 0]) == 0
    assert coefficient_of_variation([-1, 1]) is None
    assert coefficient_of_variation([3]) is None
    values = np.random.default_rng(1).normal(9, 2, 30)
    assert coefficient_of_variation(values.tolist()) == pytest.approx(stats.variation(values, ddof=1))

"""Paired tests: scipy's own answers, cases by hand, and an answer where scipy has none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mlx_sumrl.evaluation.statistics.row_tests import RowTests, d_average, row_tests, seed_test

pytestmark = pytest.mark.filterwarnings("error")


def test_by_hand() -> None:
    """Differences 1, 2, 3, 4: mean 2.5, variance 5/3; all four ranks are positive, as in 1 of 16 sets of signs."""
    found = row_tests(np.array([1.0, 2.0, 3.0, 4.0]))
    assert found.t == pytest.approx(2.5 / math.sqrt(5 / 3 / 4))
    assert found.cohens_d == pytest.approx(2.5 / math.sqrt(5 / 3))
    # Student's distribution with 3 degrees of freedom in closed form.
    x = found.t / math.sqrt(3)
    assert found.p_t == pytest.approx(1 - 2 / math.pi * (x / (1 + x**2) + math.atan(x)))
    assert (found.w, found.p_wilcoxon) == (0, 2 / 16)


@pytest.mark.parametrize("rows", [2, 9, 40, 300])
def test_it_is_scipy_s(rows: int) -> None:
    generator = np.random.default_rng(rows)
    one, two = generator.normal(0.3, 0.1, rows), generator.normal(0.32, 0.1, rows)
    found = row_tests(two - one)
    t, ranks = stats.ttest_rel(two, one), stats.wilcoxon(two, one)
    assert (found.t, found.p_t) == pytest.approx((t.statistic, t.pvalue), rel=1e-12)
    assert (found.w, found.p_wilcoxon) == pytest.approx((ranks.statistic, ranks.pvalue), rel=1e-12)
    assert found.cohens_d == pytest.approx((two - one).mean() / (two - one).std(ddof=1))
    assert d_average(one, two) == pytest.approx(
        (two.mean() - one.mean()) / ((one.std(ddof=1) + two.std(ddof=1)) / 2)
    )


def test_where_there_is_no_spread() -> None:
    assert row_tests(np.zeros(5)) == RowTests(0.0, 1.0, 0.0, 1.0, 0.0)
    assert row_tests(np.zeros(1)) == RowTests(0.0, 1.0, 0.0, 1.0, 0.0)
    assert row_tests(np.array([0.3])) == RowTests(None, 1.0, None, 1.0, None)
    # Eight rows up by the same: 2 of 256 sets of signs are as far out.
    assert row_tests(np.full(8, 0.3)) == RowTests(None, 2 / 256, 0.0, 2 / 256, None)
    assert d_average(np.full(4, 0.2), np.full(4, 0.2)) == 0
    assert d_average(np.full(4, 0.2), np.full(4, 0.3)) is None
    assert d_average(np.array([0.2]), np.array([0.3])) is None


@pytest.mark.parametrize(
    "wrong", [np.zeros(0), np.array([1.0, np.nan]), np.array([np.inf]), np.zeros((2, 2))]
)
def test_what_cannot_be_tested(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="cannot test"):
        row_tests(wrong)


def test_seeds_are_the_unit() -> None:
    one, two = np.array([0.30, 0.32, 0.31]), np.array([0.35, 0.38])
    # Welch by hand: the squared standard errors, and Satterthwaite's degrees of freedom.
    a, b = one.var(ddof=1) / 3, two.var(ddof=1) / 2
    t = (two.mean() - one.mean()) / math.sqrt(a + b)
    freedom = (a + b) ** 2 / (a**2 / 2 + b**2 / 1)
    assert seed_test(one, two) == pytest.approx(2 * stats.t.sf(t, freedom))
    assert seed_test(one, two[:1]) is None
    assert seed_test(np.full(2, 0.3), np.full(3, 0.3)) == 1
    assert seed_test(np.full(2, 0.3), np.full(3, 0.4)) is None, "no spread to hold it against"
    assert seed_test(np.full(2, 0.3), np.array([0.4, 0.5])) is not None

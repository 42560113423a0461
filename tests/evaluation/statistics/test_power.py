"""Power: the usual tables, statsmodels, and experiments that are run."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from mlx_sumrl.evaluation.statistics import detectable, power_of, rows_needed
from mlx_sumrl.evaluation.statistics.row_tests import paired_t

pytestmark = pytest.mark.filterwarnings("error")


def test_rows_of_the_tables() -> None:
    """What tables of the paired t say for a small, a medium and a large effect, two-sided, power .8."""
    assert [rows_needed(d, 0.8, 0.05) for d in (0.2, 0.5, 0.8)] == [199, 34, 15]
    assert rows_needed(-0.5, 0.8, 0.05) == 34


@pytest.mark.parametrize("effect", [0.05, 0.31, 1.0, 2.7])
def test_it_is_statsmodels_and_the_fewest(effect: float) -> None:
    rows = rows_needed(effect, 0.8, 0.05)
    assert power_of(effect, rows, 0.05) == pytest.approx(TTestPower().power(effect, rows, 0.05), abs=1e-9)
    assert power_of(effect, rows, 0.05) >= 0.8
    assert rows == 2 or power_of(effect, rows - 1, 0.05) < 0.8


@pytest.mark.parametrize("rows", [2, 3, 25, 300, 20_000])
def test_what_is_detectable_is_found_that_often(rows: int) -> None:
    found = detectable(rows, 0.2, 0.8, 0.05)
    assert power_of(found / 0.2, rows, 0.05) == pytest.approx(0.8, abs=1e-6)
    if rows >= 25:  # and nearly the normal distribution's
        normal = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * 0.2 / math.sqrt(rows)
        assert found == pytest.approx(normal, rel=0.06)


def test_experiments() -> None:
    """4,000 with a difference just detectable by 40 rows, and 4,000 with as many rows as an effect of .35 needs."""
    generator = np.random.default_rng(5)
    low, high = (end / 4000 for end in stats.binom.interval(0.99, 4000, 0.8))
    effect = detectable(40, 3.0, 0.8, 0.05)
    _, p = paired_t(generator.normal(effect, 3.0, (4000, 40)))
    assert low <= (p < 0.05).mean() <= high
    rows = rows_needed(0.35, 0.8, 0.05)
    _, p = paired_t(generator.normal(0.35, 1.0, (4000, rows)))
    assert low <= (p < 0.05).mean() <= high + 0.01, "one row less would be too few"


def test_far_away_and_close_by() -> None:
    assert power_of(1e6, 1000, 0.05) == 1
    assert power_of(0.0, 100, 0.05) == pytest.approx(0.05)
    assert rows_needed(1e6, 0.8, 0.05) == 2
    assert detectable(100, 0.0, 0.8, 0.05) == 0
    assert detectable(100, 1.0, 0.04, 0.05) == 0
    for wrong in (lambda: rows_needed(0, 0.8, 0.05), lambda: rows_needed(math.nan, 0.8, 0.05)):
        with pytest.raises(ValueError, match="give one that is not 0"):
            wrong()
    with pytest.raises(ValueError, match="do not find"):
        rows_needed(1e-6, 0.8, 0.05)
    with pytest.raises(ValueError, match="two rows"):
        power_of(1, 1, 0.05)
    with pytest.raises(ValueError, match="1 rows of spread"):
        detectable(1, 1.0, 0.8, 0.05)
    with pytest.raises(ValueError, match="between 0 and 1"):
        rows_needed(0.5, 1.0, 0.05)

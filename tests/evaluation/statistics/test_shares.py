"""Shares: Wilson, McNemar and Newcombe against their formulas, all samples there are, and statsmodels."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from statsmodels.stats.proportion import confint_proportions_2indep

from mlx_sumrl.evaluation.statistics import mcnemar_test, paired_share_interval, share_interval

pytestmark = pytest.mark.filterwarnings("error")


def rows_of(both: int, only_baseline: int, only_other: int, neither: int) -> tuple[list[float], list[float]]:
    """The rows of a table of four."""
    baseline = [1.0] * both + [1.0] * only_baseline + [0.0] * only_other + [0.0] * neither
    other = [1.0] * both + [0.0] * only_baseline + [1.0] * only_other + [0.0] * neither
    return baseline, other


@pytest.mark.parametrize(("successes", "rows"), [(0, 20), (20, 20), (3, 50), (190, 200), (0, 1), (1, 1)])
def test_wilson_solves_its_equation(successes: int, rows: int) -> None:
    """The ends are the shares p with |successes / n - p| = z sqrt(p (1 - p) / n)."""
    z = NormalDist().inv_cdf(0.975)
    low, high = share_interval(successes, rows, 0.95)
    share = successes / rows
    for end in (low, high):
        assert abs(share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / rows), abs=1e-9)
    assert 0 <= low <= share <= high <= 1
    assert low < high


def test_no_share() -> None:
    for successes, rows in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="is no share"):
            share_interval(successes, rows, 0.95)


def test_mcnemar_exact_is_a_coin() -> None:
    """3 against 9 rows: sets of 12 throws at least as uneven, counted one by one."""
    found = mcnemar_test(*rows_of(40, 3, 9, 10))
    uneven = sum(abs(throws.bit_count() - 6) >= 3 for throws in range(2**12))
    assert found.p == pytest.approx(uneven / 2**12)
    assert (found.only_baseline, found.only_other, found.exact) == (3, 9, True)


def test_mcnemar_of_many_rows_is_chi_squared() -> None:
    found = mcnemar_test(*rows_of(40, 30, 50, 10))
    assert found.p == pytest.approx(math.erfc(math.sqrt((30 - 50) ** 2 / (30 + 50) / 2)))
    assert not found.exact


def test_mcnemar_where_nothing_differs() -> None:
    assert mcnemar_test([1.0, 0.0], [1.0, 0.0]).p == 1
    assert mcnemar_test([1.0], [0.0]).p == 1
    with pytest.raises(ValueError, match="0 or 1"):
        mcnemar_test([0.5], [1.0])
    with pytest.raises(ValueError, match="got 1 rows"):
        mcnemar_test([1.0], [1.0, 0.0])


def test_newcombe_without_correlation_is_that_of_independent_shares() -> None:
    """Half of each side's successes meet the other's: phi is 0, and Newcombe's paired method is his unpaired one."""
    baseline, other = rows_of(6, 14, 24, 56)  # 20 and 30 of 100; 100 x .2 x .3 = 6 by chance
    low, high = paired_share_interval(baseline, other, 0.95)
    expected = confint_proportions_2indep(
        30, 100, 20, 100, method="newcomb", compare="diff", correction=False
    )
    assert (low, high) == pytest.approx(expected, abs=1e-9)


def test_newcombe_at_the_ends() -> None:
    """No row right before, every row after: as wide as the two Wilson intervals, not of no width."""
    low, high = paired_share_interval([0.0] * 20, [1.0] * 20, 0.95)
    one, _ = share_interval(20, 20, 0.95)
    _, two = share_interval(0, 20, 0.95)
    assert (low, high) == pytest.approx((1 - math.hypot(1 - one, two), 1.0))
    low, high = paired_share_interval([0.0] * 20, [0.0] * 20, 0.95)
    assert (low, high) == pytest.approx((-two, two))


def test_newcombe_holds_the_truth() -> None:
    """800 samples of 60 rows whose shares are .30 and .95, most rows being right twice or only after training."""
    generator = np.random.default_rng(4)
    held = 0
    for _ in range(800):
        table = generator.multinomial(60, (0.29, 0.01, 0.66, 0.04))
        low, high = paired_share_interval(*rows_of(*table), confidence=0.95)
        held += low <= 0.65 <= high
    assert 0.93 < held / 800 < 0.985

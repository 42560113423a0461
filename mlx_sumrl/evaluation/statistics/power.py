"""How many rows a difference needs to be found, and which difference so many rows find: paired t, two-sided.

The power is that of the noncentral t distribution (Cohen 1988, chapter 2), by statsmodels.
"""

from __future__ import annotations

import math

MOST_ROWS = 10**9
"""A search for rows ends here."""
FAR = 6.0
"""Standard errors between a true effect and 0 beyond which the test never (below 1e-11) rejects on the wrong side;
statsmodels gives NaN there."""


def power_of(effect_d: float, rows: int, alpha: float) -> float:
    """How often a paired t test of ``rows`` pairs finds a true mean difference of ``effect_d`` standard deviations of
    the differences (Cohen's d_z), in [0, 1].

    Raises:
        ValueError: fewer than two rows.
    """
    if rows < 2:
        raise ValueError(f"a paired test needs two rows or more, got {rows}")
    from statsmodels.stats.power import TTestPower  # takes a second to import

    effect = abs(effect_d)
    found = TTestPower().power(effect, rows, alpha / 2, alternative="larger")
    if effect * math.sqrt(rows) < FAR:
        found += TTestPower().power(effect, rows, alpha / 2, alternative="smaller")
    return float(found)


def rows_needed(effect_d: float, power: float, alpha: float) -> int:
    """The fewest rows with which a paired t test at ``alpha`` finds an effect d_z at least as often as ``power``.

    Raises:
        ValueError: an effect of 0 or one so small that 10^9 rows do not find it, or shares that are not in (0, 1).
    """
    _check(power, alpha)
    if not math.isfinite(effect_d) or effect_d == 0:
        raise ValueError(f"no number of rows finds an effect of {effect_d:g}: give one that is not 0")
    fewest, most = 2, 2
    while power_of(effect_d, most, alpha) < power:
        if most >= MOST_ROWS:
            raise ValueError(f"{MOST_ROWS:,} rows do not find an effect of {effect_d:g}")
        fewest, most = most, most * 2
    while fewest < most:
        middle = (fewest + most) // 2
        if power_of(effect_d, middle, alpha) < power:
            fewest = middle + 1
        else:
            most = middle
    return most


def detectable(rows: int, spread: float, power: float, alpha: float) -> float:
    """The smallest true mean difference that a paired t test of ``rows`` rows finds as often as ``power``.

    In the unit of ``spread``, the standard deviation of the rows' differences.

    Raises:
        ValueError: fewer than two rows, a negative spread, or shares that are not in (0, 1).
    """
    _check(power, alpha)
    if rows < 2 or spread < 0:
        raise ValueError(f"cannot say what {rows} rows of spread {spread:g} detect")
    if power <= alpha:  # what is not there is found that often
        return 0.0
    from scipy.optimize import brentq

    most = 1 / math.sqrt(rows)
    while power_of(most, rows, alpha) < power:
        most *= 2
    effect = brentq(lambda effect_d: power_of(effect_d, rows, alpha) - power, 0.0, most, xtol=1e-9)
    return float(effect) * spread


def _check(power: float, alpha: float) -> None:
    if not (0 < power < 1 and 0 < alpha < 1):
        raise ValueError(f"power {power:g} and alpha {alpha:g} have to be between 0 and 1")

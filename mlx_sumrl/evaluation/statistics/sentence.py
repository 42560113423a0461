"""A comparison in words."""

from __future__ import annotations

import math

from mlx_sumrl.evaluation.statistics.comparison import Comparison
from mlx_sumrl.metrics.catalogue import CATALOGUE

_SHARES = {
    0.5: "every other time",
    0.75: "three times in four",
    0.8: "four times in five",
    0.9: "nine times in ten",
}


def sentence(comparison: Comparison) -> str:
    """What was found, as "METEOR: no difference shown (+0.003, 95 % interval -0.004 to 0.010, 300 rows, p = .41; a
    difference of 0.011 would have been found four times in five)".

    Numbers are in the metric's own unit, with the decimals that the interval's width deserves; p is corrected for the
    other comparisons of its family, whose number is said where there are others.
    """
    one = comparison
    known = CATALOGUE.get(one.metric)
    width = one.high - one.low if one.low is not None and one.high is not None else 0.0
    decimals = _decimals(width)
    parts = [f"{one.difference:+.{decimals}f}"]
    if one.low is not None and one.high is not None:
        ends = f"{_plain(one.low, decimals)} to {_plain(one.high, decimals)}"
        parts.append(f"{100 * one.confidence:g} % interval {ends}")
    parts.append(f"{one.rows} row{'' if one.rows == 1 else 's'}" + _seeds(one))
    others = f" after Holm's correction for {one.family} comparisons" if one.family > 1 else ""
    parts.append(_p("p", one.p_holm) + others)
    if one.p_seeds is not None:
        parts.append(f"over seeds {_p('p', one.p_seeds)}")
    said = ", ".join(parts)
    if one.verdict == "no difference shown":
        said += f"; {_found(one, decimals)}"
    if one.left_out:
        said += f"; {one.left_out} without a number left out"
    return f"{known.title if known else one.metric}: {one.verdict} ({said})"


def _found(one: Comparison, decimals: int) -> str:
    if one.rows < 2:
        return "one row can show nothing"
    if one.detectable is None:
        alike = "differ alike" if one.difference else "are equal"
        return f"all rows {alike}, so what would have been found cannot be told"
    how_often = _SHARES.get(one.power, f"{100 * one.power:g} % of the time")
    return f"a difference of {_plain(one.detectable, decimals)} would have been found {how_often}"


def _seeds(one: Comparison) -> str:
    if one.seeds == (1, 1):
        return ""
    return f", {one.seeds[0]} and {one.seeds[1]} seeds averaged"


def _p(name: str, value: float) -> str:
    if value < 0.001:
        return f"{name} < .001"
    if value > 0.995:
        return f"{name} = 1"
    digits = 3 if value < 0.095 else 2
    return f"{name} = {value:.{digits}f}".replace("= 0.", "= .")


def _plain(value: float, decimals: int) -> str:
    return f"{value if round(value, decimals) else 0.0:.{decimals}f}"


def _decimals(width: float) -> int:
    """As many as show two digits of the interval's width."""
    if width <= 0:
        return 3
    return min(max(1 - math.floor(math.log10(width)), 0), 6)

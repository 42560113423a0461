"""Lengths met and missed, by hand."""

from __future__ import annotations

import math

import pytest

from mlx_sumrl.config import LengthConfig
from mlx_sumrl.evaluation import LengthSummary

ASKED = LengthConfig(target=64, tolerance=5)


def test_by_hand():
    summary = LengthSummary.of([64, 69, 58, 64, 65], ["stop", "stop", "stop", "length", "stop"], ASKED)
    assert summary.within == 3 / 5  # 64, 69 and 65
    assert summary.exact == 1 / 5  # the other 64 was cut
    assert summary.mean == 64.0
    assert summary.spread == pytest.approx(math.sqrt((0 + 25 + 36 + 0 + 1) / 5))
    assert summary.unfinished == 1 / 5
    # Errors 0, 5, -6, 0, 1; in order -6, 0, 0, 1, 5, between which numpy takes a straight line.
    assert summary.errors == pytest.approx(
        {
            "length_error": 0.0,
            "length_error_abs": 12 / 5,
            "length_error_p5": -6 + 0.2 * 6,
            "length_error_p25": 0.0,
            "length_error_p50": 0.0,
            "length_error_p75": 1.0,
            "length_error_p95": 1 + 0.8 * 4,
        }
    )


def test_the_length_matched_baseline_has_the_length_but_is_never_within():
    summary = LengthSummary.of([64] * 4, ["length"] * 4, ASKED)
    assert (summary.within, summary.exact, summary.mean, summary.spread, summary.unfinished) == (
        0,
        0,
        64,
        0,
        1,
    )
    assert set(summary.errors.values()) == {0.0}


def test_zero_tolerance_makes_within_exact():
    summary = LengthSummary.of([63, 64], ["stop", "stop"], LengthConfig(target=64, tolerance=0))
    assert (summary.within, summary.exact) == (0.5, 0.5)


@pytest.mark.parametrize(("lengths", "reasons"), [([], []), ([1, 2], ["stop"])])
def test_what_cannot_be_summarised(lengths, reasons):
    with pytest.raises(ValueError, match=f"got {len(lengths)} lengths"):
        LengthSummary.of(lengths, reasons, ASKED)

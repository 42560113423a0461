"""The precision benchmark: its rows, its two outputs, and what its numbers must show already after few steps."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from benchmarks import optimizer_precision
from benchmarks.optimizer_precision import compared, main


def test_comparison_by_hand() -> None:
    # (3, 4) beside (5, 0): 15 / 25; 15 / (5 x 5); root(4 + 16) / 5.
    found = compared(np.array([3.0, 4.0]), np.array([5.0, 0.0]))
    assert found == pytest.approx((0.6, 0.6, math.sqrt(20) / 5))


def test_no_way_at_all() -> None:
    assert compared(np.zeros(2), np.ones(2)) == (0.0, 0.0, 1.0)


def test_json_has_every_mode_and_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "--steps", "20", "--weights", "4000"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["steps"], result["weights"]) == (20, 4000)
    rows = {(row["rounding"], row["moments"], row["gradients"]): row for row in result["rows"]}
    assert len(rows) == len(result["rows"]) == 3 * 3 * len(optimizer_precision.SIGNAL_TO_NOISE)
    for (rounding, _, gradients), row in rows.items():
        if rounding == "nearest":
            assert row["projection"] < 0.1
        if rounding == "compensated":
            assert 0.95 < row["projection"] < 1.05
            assert gradients == "very noisy" or row["cosine"] > 0.95


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--steps", "1", "--weights", "200"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("stochastic", "compensated", "nearest", "blocks8", "very noisy"))

"""Agreement with labels, against formulas written out here."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_sumrl.config import JudgeConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.judging.agreement import agreement, agreements, read_labels
from mlx_sumrl.judging.replies import Verdict
from mlx_sumrl.judging.scores import JudgedRow

from .made import CRITERIA

JUDGE = [1.0, 2.4, 2.6, 4.0, 3.1, 5.0, 4.6, 2.0, 3.5, 1.2]
PEOPLE = [1, 3, 2, 5, 3, 4, 5, 2, 4, 1]


def ranks(values: list[float]) -> list[float]:
    """Mean ranks of ties."""
    return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]


def pearson(x: list[float], y: list[float]) -> float:
    mx, my = sum(x) / len(x), sum(y) / len(y)
    cov = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return cov / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def tau_b(x: list[float], y: list[float]) -> float:
    pairs = [
        (np.sign(a - c), np.sign(b - d))
        for (a, b), (c, d) in itertools.combinations(zip(x, y, strict=True), 2)
    ]
    untied = [sum(one[side] != 0 for one in pairs) for side in (0, 1)]
    return float(sum(a * b for a, b in pairs)) / math.sqrt(untied[0] * untied[1])


def quadratic_kappa(x: list[int], y: list[int]) -> float:
    n = len(x)
    seen = sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / n
    chance = sum((a - b) ** 2 for a in x for b in y) / n**2
    return 1 - seen / chance


def test_equals_the_formulas() -> None:
    found = agreement(JUDGE, PEOPLE, resamples=500, seed=0)
    assert found.n == 10
    assert found.spearman == pytest.approx(
        pearson(ranks(JUDGE), ranks([float(p) for p in PEOPLE])), abs=1e-12
    )
    assert found.kendall == pytest.approx(tau_b(JUDGE, [float(p) for p in PEOPLE]), abs=1e-12)
    rounded = [1, 2, 3, 4, 3, 5, 5, 2, 4, 1]
    assert found.kappa == pytest.approx(quadratic_kappa(rounded, PEOPLE), abs=1e-12)
    assert found.kappa_missing is None
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.spearman < found.high <= 1
    assert agreement(JUDGE, PEOPLE, resamples=500, seed=0) == found


def test_the_interval_covers() -> None:
    """Of two normal variables with correlation .8, Spearman's is 6/pi asin(.4): about 95 % of intervals hold it."""
    truth = 6 / math.pi * math.asin(0.4)
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        x = rng.normal(size=60)
        y = 0.8 * x + 0.6 * rng.normal(size=60)
        found = agreement(x.tolist(), y.tolist(), resamples=300, seed=seed)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= truth <= found.high
    assert inside >= 180  # 190 expected, with a spread of 3


@pytest.mark.parametrize(
    ("judge", "people"), [([], []), ([2.0], [3]), ([2.0, 2.0], [1, 2]), ([1.0, 2.0], [3, 3])]
)
def test_not_defined(judge: list[float], people: list[float]) -> None:
    found = agreement(judge, people, resamples=10, seed=0)
    assert found.n == len(judge)
    assert found.spearman is found.low is found.kendall is found.kappa is None


def test_labels_on_another_scale_have_no_kappa() -> None:
    found = agreement(JUDGE, [p / 10 for p in PEOPLE], resamples=50, seed=0)
    assert found.kappa is None
    assert found.kappa_missing == "labels are not whole numbers from 1 to 5"
    assert found.spearman == agreement(JUDGE, PEOPLE, resamples=50, seed=0).spearman


def options(**changes: Any) -> JudgeConfig:
    given = {"server": "http://h", "model": "m", "evaluation": ["e.json"]}
    return JudgeConfig.model_validate({**given, **changes})


def row(number: int, **digits: int) -> JudgedRow:
    return JudgedRow(
        f"r{number}", {one: [Verdict(float(digits[one]), None)] if one in digits else [] for one in CRITERIA}
    )


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def test_labels_by_criterion_and_overall(tmp_path: Path) -> None:
    path = write(
        tmp_path / "labels.jsonl",
        [
            {"id": "r0", "score": 5, "clarity": 1},
            {"id": "r1", "score": "2", "clarity": 4},
            {"id": "r2", "score": 3},
            {"id": "r9", "score": 1},
            {"score": 4},
            {"id": "r3", "score": "good"},
        ],
    )
    labels = read_labels(path, options())
    assert labels.unusable == 2
    rows = [
        row(0, **dict.fromkeys(CRITERIA, 4)),
        row(1, **dict.fromkeys(CRITERIA, 2)),
        row(2, clarity=5),
        row(3),
    ]
    found = agreements(rows, labels, resamples=20, seed=0)
    assert {name: one.n for name, one in found.items()} == {"clarity": 2, "overall": 2}
    assert (found["clarity"].spearman, found["overall"].spearman) == (pytest.approx(-1), pytest.approx(1))
    assert found["overall"].kappa == pytest.approx(quadratic_kappa([4, 2], [5, 2]))


def test_labels_that_cannot_be(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.jsonl", [{"id": "r0", "mark": 5}, {"id": "r0", "mark": 4}])
    with pytest.raises(UserError, match="has no column 'score' and none named like a criterion"):
        read_labels(path, options())
    with pytest.raises(UserError, match="has row 'r0' twice"):
        read_labels(path, options(label_column="mark"))
    with pytest.raises(UserError, match="has no column 'name'"):
        read_labels(path, options(id_column="name"))
    path = write(tmp_path / "labels.jsonl", [{"id": "x7", "score": 5}])
    with pytest.raises(
        UserError, match=r"no row of the evaluation has a label in .*its ids are x7.*evaluation r0"
    ):
        agreements([row(0)], read_labels(path, options()), resamples=20, seed=0)

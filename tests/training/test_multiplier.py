"""A constraint's multiplier: by hand, in a run as its own metrics have it, and over an interruption."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from mlx_sumrl.config import ConstraintConfig, StageConfig
from mlx_sumrl.rewards.scoring import Scores
from mlx_sumrl.training.multiplier import moved_multiplier
from tests.recipes.jobs import Job

from .test_trainer import StoppedError, stop_after

OPTIONS = ConstraintConfig(reward="within", at_least=0.9, rate=0.5, most=1.2)


@pytest.mark.parametrize(
    ("multiplier", "mean", "after"),
    [
        (1.0, 0.7, 1.1),  # .2 is missing, half of that
        (1.0, 1.0, 0.95),  # .1 too much
        (1.0, 0.0, 1.2),  # no more than the most
        (0.02, 1.0, 0.0),  # and no less than nothing
        (1.0, None, 1.0),
        (1.0, float("nan"), 1.0),
    ],
)
def test_by_hand(multiplier: float, mean: float | None, after: float) -> None:
    assert moved_multiplier(multiplier, mean, OPTIONS) == pytest.approx(after, abs=1e-12)


def test_it_scales_what_is_paid_and_not_what_was_said() -> None:
    gated_PGR = np.array([[[1.0, 0.25], [0.0, np.nan]]])
    weights_R = np.array([2.0, 4.0])
    scores = Scores(
        names=("within", "quality"),
        components={"within": gated_PGR[..., 0], "quality": gated_PGR[..., 1]},
        gated_PGR=gated_PGR,
        weights_R=weights_R,
        weighted_PGR=gated_PGR * weights_R,
        total_PG=np.array([[3.0, 0.0]]),
    )
    scaled = scores.scaled({"within": 1.5})
    np.testing.assert_array_equal(scaled.weights_R, [3.0, 4.0])
    np.testing.assert_array_equal(scaled.weighted_PGR, [[[3.0, 1.0], [0.0, np.nan]]])
    np.testing.assert_array_equal(scaled.total_PG, [[4.0, 0.0]])
    assert scaled.means() == scores.means()
    np.testing.assert_array_equal(scaled.gated_PGR, gated_PGR)


def stages(constraint: Mapping[str, Any]) -> dict[str, Any]:
    rewards = [{"kind": "length"}, {"kind": "within", "weight": 2.0}, {"kind": "rougeL"}]
    return {"stages": [{"name": "only", "steps": 6, "rewards": rewards, "constraint": constraint}]}


def test_a_run_moves_it_by_its_own_share(tmp_path: Path) -> None:
    constraint = {"at_least": 0.5, "rate": 0.3, "initial": 0.7, "most": 0.9}
    rows = Job(tmp_path, stages(constraint)).train()
    expected = 0.7
    for row in rows:
        assert row["constraint/multiplier"] == pytest.approx(expected, abs=1e-12)
        expected = min(max(expected + 0.3 * (0.5 - row["reward/within"]), 0.0), 0.9)
        # What is paid: the length and ROUGE-L as they are, what is within twice, by the multiplier.
        paid = (
            row["reward/length"]
            + row["reward/rougeL"]
            + 2 * row["constraint/multiplier"] * row["reward/within"]
        )
        assert row["reward/mean"] == pytest.approx(paid, abs=1e-9)
    assert len({row["constraint/multiplier"] for row in rows}) > 2


def test_an_interruption_changes_nothing(tmp_path: Path) -> None:
    changes = {**stages({"at_least": 0.5, "rate": 0.3}), "checkpoint": {"every": 2}}
    straight = Job(tmp_path / "straight", changes)
    whole = [row["constraint/multiplier"] for row in straight.train()]
    job = Job(tmp_path / "cut", changes)
    trainer = job.trainer()
    stop_after(trainer, 3)
    with pytest.raises(StoppedError):
        trainer.stage(job.config.stages[0], job.prepared.train)
    again = job.trainer()
    assert again.restore()
    again.stage(job.config.stages[0], job.prepared.train)
    assert [row["constraint/multiplier"] for row in job.metrics()] == whole


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        ({"reward": "withn"}, "names 'withn'"),
        ({"scales": ["length", "other"]}, "names 'other'"),
        ({"reward": "within", "scales": ["free"]}, "multiplies the weight of free, which is 0"),
    ],
)
def test_what_cannot_be_is_refused(constraint: dict[str, Any], said: str) -> None:
    rewards = [{"kind": "length"}, {"kind": "within"}, {"kind": "rougeL", "name": "free", "weight": 0.0}]
    with pytest.raises(ValidationError, match=said):
        StageConfig.model_validate({"name": "s", "steps": 1, "rewards": rewards, "constraint": constraint})

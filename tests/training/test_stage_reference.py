"""A reference in few bits through the stages of a curriculum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlx_sumrl.config import RunConfig
from mlx_sumrl.policy.reference import QuantizedReference
from mlx_sumrl.training.trainer import Trainer
from tests.recipes.jobs import Job

from .models import flat


def test_a_quantised_reference_is_renewed_where_a_stage_asks(tmp_path: Path) -> None:
    """Against the weights that the stage began with, quantised."""
    changes = {"grpo": {"beta": 0.05, "reference": "4bit"}, "policy": {"tiny": {"hidden_size": 64}}}
    job = Job(tmp_path, changes)
    paid = job.config.stages[0].rewards
    stages = [
        {"name": name, "steps": 2, "rewards": paid, "reference": reference}
        for name, reference in (("first", "kept"), ("kept", "kept"), ("fresh", "fresh"))
    ]
    job.config = RunConfig.model_validate({**dict(job.config), "stages": stages})
    trainer = job.trainer()
    begun, seen = [], []
    for stage in job.config.stages:
        begun.append(flat(QuantizedReference.of(job.policy.model, 4).arrays()))
        trainer.stage(stage, job.prepared.train)
        assert isinstance(job.policy.reference, QuantizedReference)
        assert job.policy.reference.modules
        seen.append(flat(job.policy.reference.arrays()))
    assert not np.array_equal(begun[0], begun[1])
    assert not np.array_equal(begun[0], begun[2])
    for found, stage_of in zip(seen, (0, 0, 2), strict=True):
        np.testing.assert_array_equal(found, begun[stage_of])
    rows = job.metrics()
    assert [row["updates/skipped"] for row in rows] == [0] * 6
    # A policy differs from itself in 4 bits.
    assert all(1e-6 < row["kl"] < 0.1 for row in (rows[0], rows[4]))


@pytest.mark.parametrize("tuning", ["lora", "dora"])
def test_adapters_that_have_learned_are_what_kl_is_measured_from(tmp_path: Path, tuning: str) -> None:
    """In whatever trainer they did, as a notebook has one for each call."""
    changes = {"policy": {"tuning": tuning}, "grpo": {"beta": 0.1}, "sft": {"steps": 3}}
    job = Job(tmp_path, changes)
    assert job.policy.adapters_are_new
    assert job.config.sft is not None
    Trainer(job.policy, job.config).sft(job.prepared.taught, job.config.sft)
    assert not job.policy.adapters_are_new
    job.trainer().stage(job.config.stages[0], job.prepared.train)
    rows = job.metrics()
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["kl"] > 1e-5


def test_new_adapters_need_no_copy(tmp_path: Path) -> None:
    job = Job(tmp_path, {"policy": {"tuning": "lora"}, "grpo": {"beta": 0.1}})
    job.train()
    assert job.policy.reference is None
    assert job.metrics()[0]["kl"] == pytest.approx(0, abs=1e-6)

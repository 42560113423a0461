"""Step sizes where the options name none, by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_sumrl.config import OptimizerConfig, PolicyConfig
from mlx_sumrl.training.peak_rate import peak_rate
from tests.recipes.jobs import Job


def policy(tuning: str, width: int | None = None) -> Any:
    """What of a policy a rate depends on; without a width, one that must not be asked for it."""
    known = {} if width is None else {"width": width}
    return SimpleNamespace(options=PolicyConfig(model="mine", tuning=tuning), **known)


@pytest.mark.parametrize(
    ("tuning", "width", "rate"),
    [
        ("lora", 256, 2e-3),
        ("dora", 256, 2e-3),
        ("lora", 1024, 1e-3),  # four times as wide, half the rate
        ("lora", 64, 4e-3),
        ("full", None, 1e-5),
    ],
)
def test_by_tuning_and_width(tuning: str, width: int | None, rate: float) -> None:
    assert peak_rate(OptimizerConfig(), policy(tuning, width)) == pytest.approx(rate)
    lion = OptimizerConfig(kind="lion")
    assert peak_rate(lion, policy(tuning, width)) == pytest.approx(rate / 5)


def test_what_is_asked_for_is_taken() -> None:
    assert peak_rate(OptimizerConfig(learning_rate=0.25), policy("lora")) == 0.25


def test_a_run_learns_at_the_rate_by_default(tmp_path: Path) -> None:
    stages = [
        {"name": name, "steps": 1, "rewards": [{"kind": "length"}], **own}
        for name, own in (("by default", {}), ("own", {"learning_rate": 0.125}))
    ]
    job = Job(
        tmp_path, {"stages": stages, "policy": {"tuning": "lora"}, "optimizer": {"learning_rate": None}}
    )
    rates = [row["learning_rate"] for row in job.train()]
    assert rates == pytest.approx([2e-3 * (256 / job.policy.config["hidden_size"]) ** 0.5, 0.125])

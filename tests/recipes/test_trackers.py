"""Trackers of whole runs: GRPO and supervised, killed between two checkpoints and gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_sumrl.config import TinyModelConfig
from mlx_sumrl.policy.tiny import make_tiny_model
from mlx_sumrl.training.trainer import Trainer

from .programs import Program, tiny_job, write_options


def scalars(run: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [
        (one.step, one.value) for one in EventAccumulator(str(run / "tensorboard")).Reload().Scalars(name)
    ]


def logged(run: Path, name: str) -> list[tuple[int, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(one["step"], pytest.approx(one[name], rel=1e-6)) for one in rows if name in one]


def test_grpo_gone_on_with(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    save, kept = Trainer.save, []

    def broken(self: Trainer) -> None:
        save(self)
        kept.append(self.state.step)

    update = Trainer._update

    def stopped(self: Trainer, *given: Any, **named: Any) -> Any:
        if self.state.step == 6:  # the last checkpoint is of step 4
            raise OSError("the power is cut")
        return update(self, *given, **named)

    stage = {"name": "length", "steps": 7, "rewards": [{"kind": "length"}]}
    changes = {"stages": [stage], "data": {"grammar": {"evaluation_posts": 1}}, "export": {"fused": False}}
    options = tiny_job({**changes, "reporting": {"trackers": ["tensorboard"]}, "checkpoint": {"every": 4}})
    del options["sft"]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", broken)
        patch.setattr(Trainer, "_update", stopped)
        with pytest.raises(OSError, match="power is cut"):
            program("grpo_staged", "--config", write_options(tmp_path, options))
    run = tmp_path / "runs" / "job"
    assert scalars(run, "loss")[-1][0] == 6 > kept[-1] == 4
    ended = program("grpo_staged", "--resume", "runs/job")
    assert ended.code == 0, ended
    assert scalars(run, "loss") == logged(run, "loss")
    assert scalars(run, "length/mean") == logged(run, "length/mean")


def test_supervised(program: Program, tmp_path: Path, posts: list[dict[str, str]], posts_file: Path) -> None:
    pytest.importorskip("tensorboard")
    shape = TinyModelConfig(vocabulary=320, hidden_size=32, layers=1, heads=2, context=256)
    make_tiny_model(tmp_path / "small", shape, [post["document"] for post in posts], 0)
    options = {
        "name": "sft",
        "policy": {"model": "small", "dtype": "float32"},
        "data": {"train": str(posts_file), "evaluation": str(posts_file), "max_prompt_tokens": 48},
        "sft": {"steps": 4, "max_tokens": 256},
        "evaluation": {"every": 2, "samples": 0},
        "export": {"fused": False},
        "reporting": {"trackers": ["tensorboard"]},
    }
    ended = program("sft", "--config", write_options(tmp_path, options))
    assert ended.code == 0, ended
    run = tmp_path / "runs" / "sft"
    assert [step for step, _ in scalars(run, "evaluation/loss")] == [0, 2, 4]
    for name in ("evaluation/loss", "train/loss"):
        assert scalars(run, name) == logged(run, name)


def test_an_unknown_tracker(program: Program, tmp_path: Path) -> None:
    options = tiny_job({"reporting": {"trackers": ["mlflow"]}})
    ended = program("grpo_staged", "--config", write_options(tmp_path, options))
    assert ended.code == 2
    assert "mlflow" in ended.err
    assert "tensorboard" in ended.err
    assert len(ended.err.strip().splitlines()) == 1

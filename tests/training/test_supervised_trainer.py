"""Supervised runs in this process: curves, patience, the best policy, and power cuts."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_sumrl.config import SftRunConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.options.tree import merged
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.reporting.progress import SilentProgress
from mlx_sumrl.reporting.run_folder import RunFolder
from mlx_sumrl.training.checkpoints import list_checkpoints
from mlx_sumrl.training.sft import supervised_loss
from mlx_sumrl.training.supervised_preparation import prepare_sft
from mlx_sumrl.training.supervised_trainer import SupervisedTrainer

CLOCKS = ("time/", "memory/", "tokens_per_second")


def sft_job(folder: Path, changes: Mapping[str, Any] | None = None) -> SftRunConfig:
    """12 steps on a tiny model, measured every 3, which takes half a second."""
    options = {
        "name": "job",
        "runs_dir": str(folder),
        "policy": {
            "tiny": {"vocabulary": 320, "hidden_size": 32, "layers": 2, "heads": 2, "context": 256},
            "tuning": "full",
            "dtype": "float32",
        },
        "data": {
            "grammar": {"train_posts": 40, "evaluation_posts": 6},
            "instruction": "Summarize.\n\n{document}",
            "max_prompt_tokens": 64,
        },
        "sft": {"steps": 12, "batch_size": 4},
        "optimizer": {"learning_rate": 3e-3},
        "evaluation": {"every": 3, "train_rows": 5, "samples": 1, "sample_tokens": 8},
        "checkpoint": {"every": 4, "keep": 1},
    }
    return SftRunConfig.model_validate(merged(options, changes or {}))


def trained(config: SftRunConfig, run: RunFolder, progress: Any = None) -> SupervisedTrainer:
    """A run from its start or its newest checkpoint to its end."""
    prepared = prepare_sft(config, run.path, lambda note: None)
    trainer = SupervisedTrainer(
        prepared.policy, config, prepared.train, prepared.held_out, run=run, progress=progress
    )
    trainer.restore()
    trainer.train()
    return trainer


def rows(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock said."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(CLOCKS)} for row in found]


def steps_saved(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in list_checkpoints(folder / "checkpoints")]


def weights_of(checkpoint: Path) -> dict[str, mx.array]:
    return dict(mx.load(str(checkpoint / "policy.safetensors")))  # type: ignore[arg-type]


def assert_same(one: Mapping[str, mx.array], other: Mapping[str, mx.array]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert mx.array_equal(array, other[name]), name


def test_curves_and_samples(tmp_path: Path) -> None:
    config = sft_job(tmp_path)
    with RunFolder.create(config) as run:
        trainer = trained(config, run)
    logged = rows(run.path)
    assert [row["step"] for row in logged] == [*range(13)]
    measured = [row for row in logged if "evaluation/loss" in row]
    assert [row["step"] for row in measured] == [0, 3, 6, 9, 12]
    assert all(row["train/loss"] == row["loss"] > 0 for row in logged[1:])
    assert measured[-1]["evaluation/loss"] < measured[0]["evaluation/loss"] - 0.3
    assert measured[-1]["evaluation/train_loss"] < measured[0]["evaluation/train_loss"] - 0.3
    # What is logged last is what anyone finds who asks the policy again.
    loss = supervised_loss(trainer.policy, trainer.held_out, 100)
    assert measured[-1]["evaluation/loss"] == pytest.approx(loss, rel=1e-5)
    assert logged[-1]["epoch"] == pytest.approx(12 * 4 / 40)
    for row in measured:
        written = json.loads((run.path / "evaluation" / f"step-{row['step']:06d}.json").read_text())
        assert written["evaluation/loss"] == row["evaluation/loss"]
        [sample] = written["samples"]
        assert sample["reference"]
        assert sample["length"] <= 8
    assert trainer.state.phases_done == ["sft"]


def test_epochs_are_steps(tmp_path: Path) -> None:
    config = sft_job(
        tmp_path, {"sft": {"steps": None, "epochs": 0.5, "batch_size": 8}, "evaluation": {"every": 99}}
    )
    with RunFolder.create(config) as run:
        trained(config, run)
    assert [row["step"] for row in rows(run.path)] == [0, 1, 2, 3]  # 20 rows in eights, the last of them too
    assert [row["step"] for row in rows(run.path) if "evaluation/loss" in row] == [0, 3]


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[SftRunConfig, SupervisedTrainer, list[str]]:
    """A rate that is right for a few steps and then, warmed up, far too high: training gets worse and is ended."""
    notes: list[str] = []

    class Notes(SilentProgress):
        def note(self, text: str) -> None:
            notes.append(text)

    folder = tmp_path_factory.mktemp("spoiled")
    config = sft_job(
        folder,
        {
            "sft": {"steps": 60},
            "optimizer": {"learning_rate": 3.0, "warmup_steps": 59},
            "early_stopping": {"patience": 2},
            "evaluation": {"every": 2},
        },
    )
    with RunFolder.create(config) as run:
        return config, trained(config, run, Notes()), notes


def test_patience_ends_a_run_that_gets_worse(
    spoiled: tuple[SftRunConfig, SupervisedTrainer, list[str]],
) -> None:
    config, trainer, notes = spoiled
    losses = [loss for _, loss in trainer.state.evaluations]
    best = losses.index(min(losses))
    assert 0 < best == len(losses) - 3  # the two after it were waited for
    assert trainer.best_step == 2 * best
    assert trainer.state.step == 2 * (best + 2) < 60
    assert trainer.done
    assert f"at step {2 * best}" in notes[-1]
    assert "early_stopping.patience" in notes[-1]
    # The best is kept beside the newest, though only one was asked for.
    assert steps_saved(config.folder) == [2 * best, trainer.state.step]


def test_the_best_policy_is_taken(spoiled: tuple[SftRunConfig, SupervisedTrainer, list[str]]) -> None:
    config, trainer, _ = spoiled
    last, best = trainer.policy.weights(), min(loss for _, loss in trainer.state.evaluations)
    assert supervised_loss(trainer.policy, trainer.held_out, 4096) > best + 0.01
    assert trainer.take_best() == trainer.best_step
    assert supervised_loss(trainer.policy, trainer.held_out, 4096) == pytest.approx(best, rel=1e-6)
    assert_same(
        trainer.policy.weights(), weights_of(config.folder / "checkpoints" / f"step-{trainer.best_step:06d}")
    )
    # Going on with a run that is over ends at once, where it was.
    config, run = RunFolder.open(config.folder, SftRunConfig)
    with run:
        again = trained(config, run)
    assert again.done
    assert again.state == trainer.state
    assert_same(again.policy.weights(), last)


def test_without_a_folder_the_best_is_in_memory(tmp_path: Path) -> None:
    config = sft_job(tmp_path, {"optimizer": {"learning_rate": 1.0, "warmup_steps": 11}})
    prepared = prepare_sft(config, tmp_path, lambda note: None)
    trainer = SupervisedTrainer(prepared.policy, config, prepared.train, prepared.held_out)
    trainer.train()
    best = min(loss for _, loss in trainer.state.evaluations)
    assert supervised_loss(trainer.policy, trainer.held_out, 4096) > best
    assert trainer.take_best() == trainer.best_step
    assert supervised_loss(trainer.policy, trainer.held_out, 4096) == pytest.approx(best, rel=1e-6)


def test_a_best_checkpoint_that_is_gone_is_named(tmp_path: Path) -> None:
    config = sft_job(tmp_path)
    with RunFolder.create(config) as run:
        trainer = trained(config, run)
        file = run.path / "checkpoints" / f"step-{trainer.best_step:06d}" / "policy.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(UserError, match=str(file)):
            trainer.take_best()


@pytest.mark.parametrize("target", [40, 500])
def test_a_length_that_is_asked_for_and_not_taught_is_told(target: int, tmp_path: Path) -> None:
    changes = {
        "data": {"instruction": "In {target_length} tokens:\n{document}"},
        "length": {"target": target},
    }
    notes: list[str] = []
    prepared = prepare_sft(
        sft_job(tmp_path, merged(changes, {"length": {"tolerance": 100}})), tmp_path, notes.append
    )
    usual = sorted(len(row.answer_ids) for row in prepared.train)[len(prepared.train) // 2]
    assert abs(usual - 40) <= 100 < abs(usual - 500)
    assert any(f"asks for {target} tokens" in note for note in notes) == (target == 500)


def test_conversations_were_asked_for_no_length(shared: Path, tmp_path: Path) -> None:
    """Their prompts are their own; the usual answer here has 68 tokens, far from the target."""
    changes = {
        "policy": {"model": str(shared / "models" / "summarizer-5m"), "tiny": None},
        "data": {
            "train": str(shared / "data" / "news_tags.train.jsonl"),
            "grammar": None,
            "max_prompt_tokens": 416,
            "instruction": "In {target_length} tokens:\n{document}",
        },
        "length": {"target": 500, "tolerance": 5},
    }
    notes: list[str] = []
    prepared = prepare_sft(sft_job(tmp_path, changes), tmp_path, notes.append)
    assert prepared.train
    assert not any("asks for" in note for note in notes)


class PowerCutError(Exception):
    """The end of a process, in a test that stays in one."""


class PowerCut(SilentProgress):
    """Ends everything after this many steps, before their checkpoint."""

    def __init__(self, after: int) -> None:
        self.left = after

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        self.left -= 1
        if self.left == 0:
            raise PowerCutError


CHANGES: dict[str, dict[str, Any]] = {
    "lora, dropout, smoothing": {
        "policy": {"tuning": "lora", "lora": {"dropout": 0.2, "rank": 2}},
        "sft": {"label_smoothing": 0.1},
        "optimizer": {"schedule": "cosine", "warmup_ratio": 0.2, "weight_decay": 0.1},
    },
    "full, stochastic rounding": {"policy": {"dtype": "bfloat16", "gradient_checkpointing": True}},
    "patience at its end": {
        "optimizer": {"learning_rate": 1.0, "warmup_steps": 11},
        "early_stopping": {"patience": 2},
        "sft": {"steps": 30},
        "evaluation": {"every": 1},
    },
}


@pytest.mark.parametrize("kind", CHANGES)
def test_cut_off_and_restored(kind: str, tmp_path: Path) -> None:
    """Bit for bit the run that nothing happened to: weights, moments, losses, samples, patience."""
    whole = sft_job(tmp_path, merged(CHANGES[kind], {"name": "whole"}))
    with RunFolder.create(whole) as run:
        expected = trained(whole, run)
    config = sft_job(tmp_path, merged(CHANGES[kind], {"name": "cut"}))
    with RunFolder.create(config) as run, pytest.raises(PowerCutError):
        trained(config, run, PowerCut(3))
    config, run = RunFolder.open(tmp_path / "cut", SftRunConfig)
    with run, pytest.raises(PowerCutError):
        trained(config, run, PowerCut(2))
    config, run = RunFolder.open(tmp_path / "cut", SftRunConfig)
    with run:
        found = trained(config, run)
    assert found.state == expected.state
    assert found.verdict == expected.verdict
    if kind.startswith("patience"):
        assert 3 < expected.state.step < 30
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert steps_saved(tmp_path / "cut") == steps_saved(tmp_path / "whole")
    for name in ("whole", "cut"):
        for file in (tmp_path / name / "evaluation").iterdir():
            one, other = (
                json.loads((tmp_path / run / "evaluation" / file.name).read_text())
                for run in ("whole", "cut")
            )
            assert one == other
    for checkpoint in list_checkpoints(tmp_path / "whole" / "checkpoints"):
        for file in checkpoint.glob("*.safetensors"):
            one, other = (
                mx.load(str(tmp_path / run / "checkpoints" / checkpoint.name / file.name))
                for run in ("whole", "cut")
            )
            assert_same(one, other)  # type: ignore[arg-type]
    policies: list[Policy] = []
    for trainer in (expected, found):
        trainer.take_best()
        policies.append(trainer.policy)
    assert_same(policies[0].weights(), policies[1].weights())


def test_ctrl_c_ends_after_the_step_that_is_going_on(tmp_path: Path) -> None:
    class Interrupt(SilentProgress):
        def update(self, step: int, metrics: Mapping[str, float]) -> None:
            if step == 5:
                os.kill(os.getpid(), signal.SIGINT)

    config = sft_job(tmp_path)
    with RunFolder.create(config) as run, pytest.raises(KeyboardInterrupt):
        trained(config, run, Interrupt())
    assert steps_saved(run.path)[-1] == 5
    assert rows(run.path)[-1]["step"] == 5


def test_without_held_out_rows_nothing_is_measured(tmp_path: Path) -> None:
    config = sft_job(tmp_path)
    prepared = prepare_sft(config, tmp_path, lambda note: None)
    with RunFolder.create(config) as run:
        trainer = SupervisedTrainer(prepared.policy, config, prepared.train, run=run)
        trainer.train()
        last = trainer.policy.weights()
        assert trainer.take_best() is None
    assert_same(trainer.policy.weights(), last)
    assert [row["step"] for row in rows(run.path)] == [*range(1, 13)]
    assert not any("evaluation/loss" in row for row in rows(run.path))


def test_steps_that_are_not_finite_are_skipped_and_then_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sft_job(tmp_path, {"optimizer": {"max_bad_steps": 3}})
    from mlx_sumrl.training import supervised_trainer

    real, calls = supervised_trainer.supervised_gradient, itertools.count()

    def broken(*args: Any) -> Any:
        found = real(*args)
        if next(calls) >= 5:
            name = next(iter(found.gradients))
            found.gradients[name] = found.gradients[name] * float("nan")
        return found

    monkeypatch.setattr(supervised_trainer, "supervised_gradient", broken)
    with RunFolder.create(config) as run, pytest.raises(UserError, match="3 steps in a row"):
        trained(config, run)
    saved = steps_saved(run.path)
    assert saved[-1] <= 6
    for checkpoint in list_checkpoints(run.path / "checkpoints"):
        assert all(mx.isfinite(array).all() for array in weights_of(checkpoint).values())

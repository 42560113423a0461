"""The loop: when a stage moves on, what is logged, and what a broken or a stale policy does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_sumrl.config import RunConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.data.order import batch_indices
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.rollouts.local import LocalSampler
from mlx_sumrl.rollouts.types import Group, Sampling
from mlx_sumrl.training.checkpoints import list_checkpoints
from mlx_sumrl.training.seeds import derived_seed
from mlx_sumrl.training.trainer import Trainer
from tests.recipes.jobs import Job

from .models import answer_loss, flat

# DESIGN's metric names.
EVERY_STEP = {
    *("loss", "reward/mean", "length/mean", "length/within", "length/exact", "grad_norm", "learning_rate"),
    *("ratio/mean", "clip_fraction", "update/kept_fraction", "tokens_per_second", "policy_version", "stage"),
    *("time/rollout", "time/train", "time/wait", "memory/peak_gb", "staleness/mean", "staleness/max"),
    *("groups/zero_spread", "groups/requeued"),
}


MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    def make(changes: Mapping[str, Any] | None = None) -> Job:
        return Job(tmp_path, changes or {})

    return make


def scripted(folder: Path, values: Sequence[float]) -> dict[str, Any]:
    """A reward that pays all completions of step n ``values[n]``."""
    path = folder / "scripted.py"
    path.write_text(
        f"values = iter({list(values)})\n"
        "def scripted(prompts, completions):\n"
        "    return [next(values)] * len(completions)\n"
    )
    return {"kind": "function", "function": f"{path}:scripted"}


class TestStages:
    def test_until_waits_for_steps_in_a_row(self, make_job: MakeJob, tmp_path: Path) -> None:
        paid = scripted(tmp_path, [1, 1, 0.5, 1, 1.5, 1, 0, 0, 0])
        until = {"metric": "reward/scripted", "at_least": 1, "steps": 3}
        job = make_job(
            {
                "stages": [
                    {"name": "first", "steps": 9, "rewards": [paid], "until": until},
                    {"name": "second", "steps": 2, "rewards": [{"kind": "length"}]},
                ]
            }
        )
        rows = job.train()
        # 1, 1, then 0.5 begins the count anew; 1, 1.5, 1 are three in a row.
        assert [row["stage"] for row in rows] == ["first"] * 6 + ["second"] * 2
        assert [row["stage_step"] for row in rows] == [1, 2, 3, 4, 5, 6, 1, 2]
        assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]

    def test_a_streak_outlives_a_restart(self, make_job: MakeJob, tmp_path: Path) -> None:
        until = {"metric": "reward/scripted", "at_least": 1, "steps": 3}
        stage = {"name": "only", "steps": 9, "rewards": [scripted(tmp_path, [1] * 9)], "until": until}
        job = make_job({"stages": [stage], "checkpoint": {"every": 2}})
        trainer = job.trainer()
        stop_after(trainer, 2)
        with pytest.raises(StoppedError):
            trainer.stage(job.config.stages[0], job.prepared.train)
        again = job.trainer()
        assert again.restore()
        again.stage(job.config.stages[0], job.prepared.train)
        assert [row["step"] for row in job.metrics()] == [1, 2, 3]

    def test_a_stage_that_is_never_good_enough_ends_at_its_steps(self, make_job: MakeJob) -> None:
        until = {"metric": "length/within", "at_least": 1.0, "steps": 1}
        job = make_job(
            {"stages": [{"name": "only", "steps": 2, "rewards": [{"kind": "length"}], "until": until}]}
        )
        assert len(job.train()) == 2

    def test_what_is_done_is_not_done_again(self, make_job: MakeJob) -> None:
        job = make_job({"sft": {"steps": 2}})
        first = job.train()
        assert [row["stage"] for row in first] == ["sft", "sft", "only", "only", "only"]
        weights = flat(job.policy.weights())
        trainer = job.trainer()
        assert trainer.restore()
        assert trainer.state.phases_done == ["sft", "only"]
        assert job.config.sft is not None
        trainer.sft(job.prepared.train, job.config.sft)
        trainer.stage(job.config.stages[0], job.prepared.train)
        assert job.metrics() == first
        assert np.array_equal(flat(job.policy.weights()), weights)

    def test_what_a_kill_left_half_removed_goes(self, make_job: MakeJob) -> None:
        job = make_job()
        job.train()
        whole = list_checkpoints(job.run.path / "checkpoints")
        half = job.run.path / "checkpoints" / ".unfinished-pruned-step-000001"
        half.mkdir()
        (half / "policy.safetensors").write_bytes(b"half")
        assert job.trainer().restore()
        assert sorted((job.run.path / "checkpoints").iterdir()) == whole

    def test_temperature_of_each_stage(self, make_job: MakeJob) -> None:
        """What is drawn is what is trained: on its own samples the ratio is 1 at every temperature."""
        stages = [
            {
                "name": name,
                "steps": 2,
                "rewards": [{"kind": "length"}, {"kind": "repetition", "ngram": 1, **credit}],
                **own,
            }
            for name, own, credit in (
                ("warm", {}, {}),
                ("cool", {"temperature": 0.4}, {}),
                ("apart", {"temperature": 0.3}, {"credit": "stop"}),
            )
        ]
        job = make_job({"stages": stages, "sampling": {"temperature": 1.3}})
        drawn: list[float] = []

        class Noting(LocalSampler):
            def sample(
                self, examples: Sequence[Example], group_size: int, sampling: Sampling, seed: int
            ) -> list[Group]:
                drawn.append(sampling.temperature)
                return super().sample(examples, group_size, sampling, seed)

        rows = job.train(Noting(job.policy))
        assert drawn == [1.3, 1.3, 0.4, 0.4, 0.3, 0.3]
        assert [row["ratio/mean"] for row in rows] == pytest.approx([1.0] * 6, abs=1e-4)
        assert [row["policy_version"] for row in rows] == [1, 2, 3, 4, 5, 6]

    def test_moments_and_learning_rate_of_each_stage(self, make_job: MakeJob) -> None:
        changes = [{"learning_rate": 1e-3}, {"learning_rate": 5e-4}, {"optimizer": "fresh"}]
        job = make_job()
        paid = job.config.stages[0].rewards
        stages = [
            {"name": name, "steps": steps, "rewards": paid, **change}
            for name, steps, change in zip(("first", "kept", "fresh"), (2, 1, 1), changes, strict=True)
        ]
        job.config = RunConfig.model_validate({**dict(job.config), "stages": stages})
        trainer = job.trainer()
        counts = []
        for stage in job.config.stages:
            trainer.stage(stage, job.prepared.train)
            counts.append(trainer.optimizer.count)
        assert counts == [2, 3, 1]
        assert [row["learning_rate"] for row in job.metrics()] == [1e-3, 1e-3, 5e-4, 3e-3]


class StoppedError(Exception):
    """The end of a process."""


def stop_after(trainer: Trainer, steps: int) -> None:
    """Right after the checkpoint of that step."""
    save = trainer.save

    def save_and_stop() -> None:
        save()
        if trainer.state.step >= steps:
            raise StoppedError

    trainer.save = save_and_stop  # type: ignore[method-assign]


class TestMetrics:
    def test_every_name_is_in_every_line(self, make_job: MakeJob) -> None:
        job = make_job({"grpo": {"beta": 0.1}})
        rows = job.train()
        assert len(rows) == 3
        for row in rows:
            assert row.keys() >= EVERY_STEP | {"reward/length", "reward/vowels", "kl"}
            numbers = {name: value for name, value in row.items() if name != "stage"}
            assert all(math.isfinite(value) for value in numbers.values())
            assert row["stage"] == "only"
            assert row["groups/zero_spread"] == row["groups/requeued"] == row["time/wait"] == 0
            assert row["tokens_per_second"] > 0
            assert row["memory/peak_gb"] > 0
            assert 0 < row["time/rollout"] + row["time/train"] <= row["time/step"]
            # With weights of 1 the mean reward is the sum of what each reward gave.
            assert row["reward/mean"] == pytest.approx(row["reward/length"] + row["reward/vowels"])
        # The reference is the policy as the stage found it, and each step leads away from it.
        assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
        assert rows[2]["kl"] > rows[0]["kl"]

    def test_no_kl_without_beta(self, make_job: MakeJob) -> None:
        job = make_job()
        assert all("kl" not in row for row in job.train())
        assert job.policy.reference is None

    def test_supervised_steps(self, make_job: MakeJob) -> None:
        job = make_job({"sft": {"steps": 3}, "stages": []})
        train, size = job.prepared.train, job.config.sft.batch_size
        seed = derived_seed(job.config.seed, "order sft")
        loss, tokens = answer_loss(job.policy, [train[i] for i in batch_indices(seed, len(train), size, 0)])
        rows = job.train()
        names = {"loss", "grad_norm", "learning_rate", "update/kept_fraction", "tokens_per_second", "stage"}
        assert all(row.keys() >= names | {"memory/peak_gb", "policy_version"} for row in rows)
        assert rows[0]["loss"] == pytest.approx(loss, rel=1e-5)
        assert rows[0]["tokens"] == tokens
        assert rows[2]["loss"] < rows[0]["loss"]

    def test_lengths_are_those_of_the_completions(self, make_job: MakeJob) -> None:
        """Against what rollouts.jsonl says of the same completions."""
        job = make_job({"reporting": {"rollouts_every": 1, "rollout_groups": 2}})
        metrics = job.train()
        records = [json.loads(line) for line in (job.run.path / "rollouts.jsonl").read_text().splitlines()]
        for row in metrics:
            drawn = [
                completion
                for record in records
                if record["step"] == row["step"]
                for completion in record["completions"]
            ]
            assert len(drawn) == 8
            met = [one for one in drawn if one["finish_reason"] == "stop"]
            assert row["length/mean"] == pytest.approx(sum(one["length"] for one in drawn) / 8)
            assert row["length/within"] == sum(8 <= one["length"] <= 16 for one in met) / 8
            assert row["length/exact"] == sum(one["length"] == 12 for one in met) / 8
            assert row["reward/mean"] == pytest.approx(sum(one["total"] for one in drawn) / 8)


class StaleSampler:
    """Draws from the policy as it was, and says so."""

    def __init__(self, frozen: Policy) -> None:
        self.inner = LocalSampler(frozen)

    def sample(
        self, examples: Sequence[Example], group_size: int, sampling: Sampling, seed: int
    ) -> list[Group]:
        return self.inner.sample(examples, group_size, sampling, seed)

    @property
    def ahead(self) -> int:
        return 0

    def publish(self, policy_version: int) -> None:
        """It does not follow."""

    def prepare(self, examples: Sequence[Example], group_size: int, sampling: Sampling, seed: int) -> None:
        """Nor does it look ahead."""

    def status(self) -> str:
        return ""

    def report(self) -> Mapping[str, float]:
        return {}


class TestStaleness:
    def test_a_local_sampler_is_never_stale(self, make_job: MakeJob) -> None:
        rows = make_job({"optimizer": {"learning_rate": 0.01}}).train()
        assert [row["policy_version"] for row in rows] == [1, 2, 3]
        for row in rows:
            assert row["staleness/mean"] == row["staleness/max"] == 0
            assert row["ratio/mean"] == pytest.approx(1, abs=1e-4)
            assert row["clip_fraction"] == 0

    def test_several_updates_on_the_same_rollouts(self, make_job: MakeJob) -> None:
        changes = {"grpo": {"updates_per_rollout": 3}, "optimizer": {"learning_rate": 0.01}}
        rows = make_job(changes).train()
        assert [row["policy_version"] for row in rows] == [3, 6, 9]
        assert [row["staleness/max"] for row in rows] == [0, 0, 0]  # when they were drawn
        assert all(abs(row["ratio/mean"] - 1) > 1e-3 for row in rows)  # when they were last trained on

    @pytest.mark.parametrize("correction", ["clip", "truncate", "mask"])
    def test_a_stale_sampler_is_seen_and_corrected_for(self, correction: str, make_job: MakeJob) -> None:
        changes = {"optimizer": {"learning_rate": 0.01}, "grpo": {"correction": correction}}
        job = make_job(changes)
        frozen = load_policy(job.policy.options)
        rows = job.train(StaleSampler(frozen))
        assert [row["policy_version"] for row in rows] == [1, 2, 3]
        assert [row["staleness/mean"] for row in rows] == [0, 1, 2]
        assert [row["staleness/max"] for row in rows] == [0, 1, 2]
        assert rows[0]["ratio/mean"] == pytest.approx(1, abs=1e-4)
        assert abs(rows[1]["ratio/mean"] - 1) > 1e-3
        assert rows[0]["ratio/sampler_kl"] < 1e-6
        assert min(row["ratio/sampler_kl"] for row in rows[1:]) > 1e-3
        assert rows[2]["clip_fraction"] > 0
        assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)


class SabotagedSampler(LocalSampler):
    """Follows the policy, and spoils something right after it has drawn for the ``at``-th time."""

    def __init__(self, policy: Policy, at: int, spoil: Callable[[list[Group]], list[Group]]) -> None:
        super().__init__(policy)
        self.drawn, self.at, self.spoil = 0, at, spoil

    def sample(
        self, examples: Sequence[Example], group_size: int, sampling: Sampling, seed: int
    ) -> list[Group]:
        groups = super().sample(examples, group_size, sampling, seed)
        self.drawn += 1
        return self.spoil(groups) if self.drawn == self.at else groups


class TestNotFinite:
    def test_a_broken_policy_stops_the_run_and_keeps_a_good_checkpoint(self, make_job: MakeJob) -> None:
        """Its completions are all alike and earn the same: there is not even a gradient that is NaN."""
        job = make_job({"optimizer": {"max_bad_steps": 3}, "checkpoint": {"every": 1, "keep": 1}})
        stage = job.config.stages[0].model_copy(update={"steps": 8})
        job.config = job.config.model_copy(update={"stages": (stage,)})

        def break_policy(groups: list[Group]) -> list[Group]:
            weights = job.policy.weights()
            name = next(name for name in weights if "embed" in name)
            job.policy.set_weights(weights | {name: mx.full(weights[name].shape, math.nan)})
            return groups

        with pytest.raises(UserError) as caught:
            job.train(SabotagedSampler(job.policy, 3, break_policy))
        assert "not finite in 3 steps in a row" in str(caught.value)
        assert "last good checkpoint" in str(caught.value)
        rows = job.metrics()
        assert [row["updates/skipped"] for row in rows] == [0, 0, 1, 2]
        assert [row["policy_version"] for row in rows] == [1, 2, 2, 2]
        assert [row["loss"] is None for row in rows] == [False, False, True, True]
        assert [path.name for path in list_checkpoints(job.run.path / "checkpoints")] == ["step-000002"]

        trainer = job.trainer()
        assert trainer.restore()
        assert trainer.state.step == 2
        assert np.isfinite(flat(job.policy.weights())).all()
        trainer.stage(job.config.stages[0], job.prepared.train)
        assert [row["step"] for row in job.metrics()] == [1, 2, 3, 4, 5, 6, 7, 8]

    def test_a_broken_policy_stops_supervised_training(self, make_job: MakeJob) -> None:
        job = make_job({"sft": {"steps": 9}, "optimizer": {"max_bad_steps": 2}, "stages": []})
        weights = job.policy.weights()
        job.policy.set_weights({name: mx.full(array.shape, math.nan) for name, array in weights.items()})
        with pytest.raises(UserError, match="not finite in 2 steps in a row"):
            job.train()
        assert len(job.metrics()) == 1

    def test_one_bad_step_is_skipped_and_the_run_goes_on(self, make_job: MakeJob) -> None:
        job = make_job({"optimizer": {"max_bad_steps": 2}})
        seen = []

        def lose_a_number(groups: list[Group]) -> list[Group]:
            seen.append(flat(job.policy.weights()))
            first, *others = groups[0].completions
            bad = replace(first, logprobs=(math.nan, *first.logprobs[1:]))
            return [replace(groups[0], completions=(bad, *others)), *groups[1:]]

        sampler = SabotagedSampler(job.policy, 2, lose_a_number)
        publish = sampler.publish

        def published(version: int) -> None:
            seen.append(flat(job.policy.weights()))
            publish(version)

        sampler.publish = published  # type: ignore[method-assign]
        rows = job.train(sampler)
        assert [row["updates/skipped"] for row in rows] == [0, 1, 1]
        assert [row["policy_version"] for row in rows] == [1, 1, 2]
        _start, after_first, before_bad, after_bad, after_third = seen
        assert np.array_equal(after_first, before_bad)
        assert np.array_equal(after_first, after_bad)
        assert np.isfinite(after_third).all()
        assert not np.array_equal(after_first, after_third)


class TestZeroSpread:
    def test_groups_without_a_difference_teach_nothing(self, make_job: MakeJob, tmp_path: Path) -> None:
        stages = [{"name": "only", "steps": 3, "rewards": [scripted(tmp_path, [0.25, 0.5, 0.75])]}]
        job = make_job({"stages": stages})
        before = flat(job.policy.weights())
        rows = job.train()
        assert [row["reward/mean"] for row in rows] == [0.25, 0.5, 0.75]
        assert [row["groups/zero_spread"] for row in rows] == [2, 2, 2]
        assert [row["grad_norm"] for row in rows] == [0, 0, 0]
        assert [row["policy_version"] for row in rows] == [0, 0, 0]
        assert [row["updates/skipped"] for row in rows] == [0, 0, 0]
        assert np.array_equal(flat(job.policy.weights()), before)

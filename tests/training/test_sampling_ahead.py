"""What the loop tells a sampler: each request before it comes, each new policy; a checkpoint when none is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_sumrl.data.example import Example
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.rollouts.local import LocalSampler
from mlx_sumrl.rollouts.types import Group, NoSamplerError, Sampling
from mlx_sumrl.training.checkpoints import list_checkpoints
from tests.recipes.jobs import Job

from .models import flat

Asked = tuple[tuple[str, ...], int, Sampling, int]


class ListeningSampler(LocalSampler):
    """Writes down all that it is told; has nobody left to ask from the ``lost``-th time on."""

    def __init__(self, policy: Policy, lost: int | None = None) -> None:
        super().__init__(policy)
        self.told: list[tuple[str, Any]] = []
        self.lost = lost

    def sample(
        self, examples: Sequence[Example], group_size: int, sampling: Sampling, seed: int
    ) -> list[Group]:
        self.told.append(("sample", self.asked(examples, group_size, sampling, seed)))
        if self.lost is not None and len(self.of("sample")) >= self.lost:
            raise NoSamplerError("nobody answers")
        return super().sample(examples, group_size, sampling, seed)

    @property
    def ahead(self) -> int:
        return 1

    def prepare(self, examples: Sequence[Example], group_size: int, sampling: Sampling, seed: int) -> None:
        self.told.append(("prepare", self.asked(examples, group_size, sampling, seed)))

    def publish(self, policy_version: int) -> None:
        self.told.append(("publish", policy_version))
        super().publish(policy_version)

    def status(self) -> str:
        return ""

    def report(self) -> Mapping[str, float]:
        return {**super().report(), "time/wait": 7.0}

    @staticmethod
    def asked(examples: Sequence[Example], group_size: int, sampling: Sampling, seed: int) -> Asked:
        return tuple(example.id for example in examples), group_size, sampling, seed

    def of(self, kind: str) -> list[Any]:
        return [value for name, value in self.told if name == kind]


def stages(folder: Path) -> list[dict[str, Any]]:
    """Of 3 and 2 steps, paid for what every completion has a different share of: no step is without an update."""
    paid = [{"kind": "function", "function": f"{folder / 'mine.py'}:vowels"}]
    return [{"name": "first", "steps": 3, "rewards": paid}, {"name": "second", "steps": 2, "rewards": paid}]


def test_a_step_is_announced_as_it_then_comes(tmp_path: Path) -> None:
    job = Job(tmp_path, {"stages": stages(tmp_path)})
    sampler = ListeningSampler(job.policy)
    rows = job.train(sampler)
    step = ["prepare", "prepare", "sample", "publish"]
    last = ["prepare", "sample", "publish"]
    assert [name for name, _ in sampler.told] == ["publish", *step, *step, *last, "publish", *step, *last]
    sampled = sampler.of("sample")
    # Each is told of twice, a step ahead and again as what comes next, but for a stage's first.
    order = [0, 1, 1, 2, 2, 3, 4, 4]
    assert sampler.of("prepare") == [sampled[place] for place in order]
    assert len(set(sampled)) == 5
    assert sampler.of("publish") == [0, 1, 2, 3, 3, 4, 5]
    assert [row["time/wait"] for row in rows] == [7.0] * 5


def test_the_next_step_is_told_of_before_this_one_is_waited_for(tmp_path: Path) -> None:
    """So that no machine is without work from one to the other."""
    job = Job(tmp_path, {"stages": stages(tmp_path)[:1]})
    sampler = ListeningSampler(job.policy)
    job.train(sampler)
    sampled = sampler.of("sample")
    for step in (0, 1):
        assert sampler.told.index(("prepare", sampled[step + 1])) < sampler.told.index(
            ("sample", sampled[step])
        )


def test_several_updates_are_one_publication(tmp_path: Path) -> None:
    job = Job(tmp_path, {"stages": stages(tmp_path)[:1], "grpo": {"updates_per_rollout": 2}})
    sampler = ListeningSampler(job.policy)
    job.train(sampler)
    assert sampler.of("publish") == [0, 2, 4, 6]


def test_supervised_steps_are_not_published(tmp_path: Path) -> None:
    job = Job(tmp_path, {"stages": stages(tmp_path)[:1], "sft": {"steps": 4, "batch_size": 2}})
    sampler = ListeningSampler(job.policy)
    job.train(sampler)
    assert sampler.of("publish") == [4, 5, 6, 7]


def test_a_run_that_has_lost_its_samplers_is_saved_and_goes_on_later(tmp_path: Path) -> None:
    for name in ("whole", "lost"):
        (tmp_path / name).mkdir()
    changes = {"stages": stages(tmp_path / "whole"), "checkpoint": {"every": 100}}
    whole, job = Job(tmp_path / "whole", changes), Job(tmp_path / "lost", changes)
    rows = whole.train()
    with pytest.raises(NoSamplerError, match="nobody answers"):
        job.train(ListeningSampler(job.policy, lost=3))
    assert [path.name for path in list_checkpoints(job.run.path / "checkpoints")] == ["step-000002"]
    later = job.trainer()
    assert later.restore()
    for stage in job.config.stages:
        later.stage(stage, job.prepared.train)
    assert [row["loss"] for row in job.metrics()] == [row["loss"] for row in rows]
    assert np.array_equal(flat(job.policy.weights()), flat(whole.policy.weights()))

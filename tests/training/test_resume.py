"""A run that was killed, at any moment and however often, ends exactly as one that was not."""

from __future__ import annotations

import json
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_sumrl.config import PolicyConfig, RunConfig
from mlx_sumrl.options.tree import merged
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.reporting.progress import SilentProgress
from mlx_sumrl.reporting.run_folder import RunFolder
from mlx_sumrl.training.checkpoints import list_checkpoints, load_checkpoint
from mlx_sumrl.training.optimizer import Optimizer
from mlx_sumrl.training.preparation import prepare
from mlx_sumrl.training.trainer import Trainer
from tests.recipes.forked import ForkedRecipes
from tests.recipes.programs import VOWELS, start, tiny_job, write_options

STEPS = 20
KILLS, STARTS = 10, 2
"""Of the kills so many meet a process that has not begun its work."""
CLOCKS = ("time/", "memory/", "tokens_per_second")
"""What differs between two runs of the same thing."""


def job(rewards: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """6 supervised steps and two stages of 7, the second with new moments and a new reference."""
    paid = [{"kind": "length"}, {"kind": "function", "function": f"{rewards}:vowels"}]
    stages = [
        {"name": "first", "steps": 7, "rewards": paid},
        {"name": "second", "steps": 7, "rewards": paid[::-1], "optimizer": "fresh", "reference": "fresh"},
    ]
    return dict(merged(tiny_job({"stages": stages, "grpo": {"beta": 0.05}}), changes or {}))


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rewards") / "mine.py"
    path.write_text(VOWELS)
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file without what a clock said."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(CLOCKS)} for row in rows]


def record(run: Path) -> dict[str, Any]:
    """Everything that a finished run left and that has to repeat."""
    last = list_checkpoints(run / "checkpoints")[-1]
    state = json.loads((last / "state.json").read_text())
    return {
        "last": last.name,
        "state": state["state"],
        "count": state["optimizer_count"],
        "metrics": lines(run / "metrics.jsonl"),
        "rollouts": lines(run / "rollouts.jsonl"),
        "evaluation": {path.name: json.loads(path.read_text()) for path in (run / "evaluation").iterdir()},
        "arrays": {
            f"{path.parent.name}/{path.name}": mx.load(str(path))
            for path in [*last.glob("*.safetensors"), *run.glob("export/*/*.safetensors")]
        },
    }


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Bit for bit."""
    assert one["metrics"] == other["metrics"]
    assert one["arrays"].keys() == other["arrays"].keys()
    for file, arrays in one["arrays"].items():
        assert arrays.keys() == other["arrays"][file].keys()
        for name, array in arrays.items():
            assert array.dtype == other["arrays"][file][name].dtype
            assert mx.array_equal(array, other["arrays"][file][name]), f"{name} in {file}"
    plain = [key for key in one if key != "arrays"]
    assert {key: one[key] for key in plain} == {key: other[key] for key in plain}


@dataclass(frozen=True)
class Uninterrupted:
    """A run as it should be, and how long it took."""

    folder: Path
    config: str
    record: dict[str, Any]
    seconds_to_start: float
    seconds_of_work: float


def started(process: subprocess.Popen[str]) -> None:
    """Waits until everything is imported and the data is read."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("train:"):
            return
    raise AssertionError(f"the run ended before it began:\n{said}")


@pytest.fixture(scope="module")
def uninterrupted(rewards: Path, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    folder = tmp_path_factory.mktemp("runs")
    config = write_options(folder, job(rewards))
    begun = time.monotonic()
    process = start("grpo_staged", "--config", config, "--name", "whole", folder=folder)
    started(process)
    working = time.monotonic()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    ended = time.monotonic()
    whole = record(folder / "runs" / "whole")
    assert [row["step"] for row in whole["metrics"]] == [*range(1, STEPS + 1)]
    assert {row["stage"] for row in whole["metrics"]} == {"sft", "first", "second"}
    assert all(row["grad_norm"] > 0 for row in whole["metrics"]), "every step has to move something"
    return Uninterrupted(folder, config, whole, working - begun, ended - working)


def assert_whole(run: Path, policy: Policy) -> None:
    """Whatever carries the name of a finished file or checkpoint is one."""
    for checkpoint in list_checkpoints(run / "checkpoints"):
        optimizer = Optimizer(RunConfig(policy=policy.options).optimizer, seed=0)
        assert load_checkpoint(checkpoint, policy, optimizer).step == int(checkpoint.name[5:])
    for path in run.glob("**/*.json"):
        json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has loaded MLX")
def test_killed_again_and_again(uninterrupted: Uninterrupted) -> None:
    """SIGKILL at random moments, most of them in the midst of the work and some while a process starts."""
    folder, moments = uninterrupted.folder, random.Random(0)
    base = folder / "runs" / "whole" / "base"
    policy = load_policy(PolicyConfig(model=str(base), tuning="full", dtype="float32"))
    run, runs, midway, code = folder / "runs" / "killed-0", 0, 0, None

    def argv() -> list[str]:
        going_on = (run / "config.json").is_file()
        return ["--resume", str(run)] if going_on else ["--config", uninterrupted.config, "--name", run.name]

    def killed() -> None:
        nonlocal midway
        midway += bool(list_checkpoints(run / "checkpoints"))
        assert_whole(run, policy)

    def whole() -> None:
        assert_same(record(run), uninterrupted.record)
        assert not list((run / "checkpoints").glob(".*")), "nothing half is left"

    for _ in range(STARTS):
        program = start("grpo_staged", *argv(), folder=folder)
        time.sleep(moments.uniform(0, uninterrupted.seconds_to_start))
        program.kill()
        program.communicate()
        killed()
    kills = STARTS
    with ForkedRecipes(folder) as forked:
        while kills < KILLS or code != 0:
            process = forked.start("grpo_staged", *argv())
            while "train:" not in process.said() and process.ended(0.01) is None:
                pass
            if kills < KILLS:
                code = process.ended(moments.uniform(0, 0.6 * uninterrupted.seconds_of_work))
                if code is None:
                    process.kill()
                    code = process.ended(60)
                    if code != 0:
                        assert code == -signal.SIGKILL, process.said()
                        kills += 1
                        killed()
                        continue
            else:
                code = process.ended(120)
            assert code == 0, process.said()
            whole()
            if kills < KILLS:
                runs += 1
                run = folder / "runs" / f"killed-{runs}"
    assert midway >= KILLS // 3, "some of the kills have to meet a run that has something to lose"


@pytest.mark.slow
def test_stopped_with_ctrl_c(uninterrupted: Uninterrupted) -> None:
    """The step is finished and saved, the way to go on is told, and it leads to the same end."""
    folder = uninterrupted.folder
    run, metrics = folder / "runs" / "stopped", folder / "runs" / "stopped" / "metrics.jsonl"
    argv = ["--config", uninterrupted.config, "--name", run.name]
    process = start("grpo_staged", *argv, folder=folder)
    while process.poll() is None and (not metrics.exists() or len(metrics.read_bytes().splitlines()) < 8):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "stopping after this step" in said
    assert "Traceback" not in said

    steps = [row["step"] for row in lines(metrics)]
    assert steps == [*range(1, len(steps) + 1)]
    assert 8 <= len(steps) < STEPS
    assert list_checkpoints(run / "checkpoints")[-1].name == f"step-{len(steps):06d}"

    command = "python -m recipes.grpo_staged --resume runs/stopped"
    assert f"stopped; go on with: {command}\n" in said
    _, _, recipe, *rest = shlex.split(command)
    process = start(recipe.removeprefix("recipes."), *rest, folder=folder)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert f"going on after step {len(steps)}" in said
    assert_same(record(run), uninterrupted.record)


class PowerCutError(Exception):
    """The end of a process, in a test that stays in one."""


class PowerCut(SilentProgress):
    """Ends everything after this many steps, whatever the run would still have done with them."""

    def __init__(self, after: int) -> None:
        self.left = after

    def update(self, step: int, metrics: Mapping[str, float], status: str = "") -> None:
        self.left -= 1
        if self.left == 0:
            raise PowerCutError


@pytest.mark.parametrize(
    ("tuning", "dtype", "cuts", "optimizer", "reference"),
    [
        pytest.param("lora", "float32", [4, 9], {}, "copy", id="lora: in each stage"),
        pytest.param(
            "dora", "bfloat16", [7, 6], {}, "copy", id="dora, stochastic rounding: right after a stage's end"
        ),
        pytest.param(
            "full",
            "bfloat16",
            [1, 11],
            {},
            "copy",
            id="full, stochastic rounding: before the first checkpoint",
        ),
        pytest.param(
            "full",
            "bfloat16",
            [5, 6],
            {"kind": "muon", "rounding": "compensated", "moments": "blocks8"},
            "copy",
            id="full, compensated rounding of muon with 8-bit moments",
        ),
        pytest.param("full", "float32", [6, 7], {}, "4bit", id="full, reference in 4 bits: in each stage"),
    ],
)
def test_dropout_rounding_and_a_new_reference(
    tuning: str,
    dtype: str,
    cuts: list[int],
    optimizer: dict[str, str],
    reference: str,
    rewards: Path,
    tmp_path: Path,
) -> None:
    """Two stages with dropout and a KL term, the second with a new reference: cut off and restored."""

    def train(run: RunFolder, config: RunConfig, cut: int | None) -> dict[str, Any]:
        prepared = prepare(config, run.path, lambda note: None)
        trainer = Trainer(
            prepared.policy, config, run=run, progress=PowerCut(cut) if cut else SilentProgress()
        )
        trainer.restore()
        for stage in config.stages:
            trainer.stage(stage, prepared.train)
        return prepared.policy.weights()

    changes = {
        "runs_dir": str(tmp_path),
        "sft": None,
        "policy": {
            "tiny": {"hidden_size": 64},  # enough to be quantised
            "tuning": tuning,
            "dtype": dtype,
            "lora": {"dropout": 0.1, "rank": 2},
        },
        "grpo": {"reference": reference},
        "optimizer": {"learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 2, **optimizer},
        "checkpoint": {"every": 4},
    }
    whole = RunConfig.model_validate(job(rewards, {**changes, "name": "whole"}))
    with RunFolder.create(whole) as run:
        train(run, whole, None)
    config = RunConfig.model_validate(job(rewards, {**changes, "name": "cut"}))
    with RunFolder.create(config) as run, pytest.raises(PowerCutError):
        train(run, config, cuts[0])
    for cut in cuts[1:]:
        config, run = RunFolder.open(tmp_path / "cut", RunConfig)
        with run, pytest.raises(PowerCutError):
            train(run, config, cut)
    config, run = RunFolder.open(tmp_path / "cut", RunConfig)
    with run:
        train(run, config, None)

    (tmp_path / "whole" / "evaluation").mkdir()
    (tmp_path / "cut" / "evaluation").mkdir()
    expected = record(tmp_path / "whole")
    assert [row["step"] for row in expected["metrics"]] == [*range(1, 15)]
    quantised = [name for name in expected["arrays"]["step-000014/reference.safetensors"] if "scales" in name]
    assert len(quantised) == (2 * 7 + 1 if reference == "4bit" else 0)  # two blocks and the embedding
    assert any(row["kl"] > 0 for row in expected["metrics"])
    if tuning == "lora":  # dropout is at work: without it the policy is the one that has just sampled
        assert any(abs(row["ratio/mean"] - 1) > 1e-6 for row in expected["metrics"])
    assert_same(record(tmp_path / "cut"), expected)

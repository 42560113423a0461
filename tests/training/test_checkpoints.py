"""Checkpoints: bit for bit what was saved, whole or absent, whatever moment the process dies at."""

from __future__ import annotations

import os
import shutil
from dataclasses import fields
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_sumrl.config import LoraConfig, OptimizerConfig, PolicyConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.policy import Policy, Weights
from mlx_sumrl.training.checkpoints import (
    TrainState,
    list_checkpoints,
    load_checkpoint,
    prune,
    save_checkpoint,
)
from mlx_sumrl.training.optimizer import Optimizer
from tests.families import randomize_adapters, write_model
from tests.training.filled import check_filled, filled, moments, small_policy

KINDS = [("full", "float32"), ("full", "bfloat16"), ("lora", "float32"), ("dora", "bfloat16")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {family: write_model(base / family, family) for family in ("qwen2", "lfm2")}


def load(folder: Path, tuning: str, dtype: str, seed: int = 0) -> Policy:
    options = PolicyConfig(model=str(folder), tuning=tuning, dtype=dtype, lora=LoraConfig(rank=4))
    policy = load_policy(options, seed=seed)
    if tuning != "full":
        randomize_adapters(policy, seed=seed)
    return policy


def step(policy: Policy, optimizer: Optimizer, seed: int) -> None:
    """One update with random gradients: the same for the same seed."""
    generator = np.random.default_rng(seed)
    gradients = {
        name: mx.array(generator.standard_normal(array.shape).astype(np.float32))
        for name, array in policy.weights().items()
    }
    updated, _ = optimizer.step(policy.weights(), gradients, 1e-4)
    policy.set_weights(updated)


def bits(weights: Weights) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of each array: equal only when every bit is."""
    plain = {mx.bfloat16: mx.uint16, mx.float32: mx.uint32}
    return {
        name: (str(array.dtype), np.array(array.view(plain[array.dtype])).tobytes())
        for name, array in weights.items()
    }


STATE = TrainState(
    step=123,
    phase="quality",
    phase_step=23,
    phases_done=["sft", "length"],
    policy_version=119,
    streak=3,
    multiplier=0.75,
    bad_in_a_row=1,
    bad_total=4,
)


@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize("family", ["qwen2", "lfm2"])
@pytest.mark.parametrize(("tuning", "dtype"), KINDS)
def test_everything_comes_back_bit_for_bit(
    tuning: str, dtype: str, family: str, with_reference: bool, folders: dict[str, Path], tmp_path: Path
) -> None:
    policy, optimizer = load(folders[family], tuning, dtype, seed=1), Optimizer(OptimizerConfig(), seed=5)
    if with_reference:
        policy.reference = policy.snapshot()
    for seed in (1, 2):
        step(policy, optimizer, seed)
    saved = bits(policy.weights()), bits(optimizer.state()), bits(policy.reference or {})
    checkpoint = save_checkpoint(tmp_path, STATE, policy, optimizer, keep=2)
    assert checkpoint == tmp_path / "step-000123"
    assert (bits(policy.weights()), bits(optimizer.state()), bits(policy.reference or {})) == saved

    other, empty = load(folders[family], tuning, dtype, seed=2), Optimizer(OptimizerConfig(), seed=5)
    assert bits(other.weights()) != saved[0] or tuning == "full"
    assert load_checkpoint(checkpoint, other, empty) == STATE
    assert (bits(other.weights()), bits(empty.state()), bits(other.reference or {})) == saved
    assert empty.count == optimizer.count == 2
    assert (other.reference is None) == (not with_reference)
    # The arrays do not hang on the files: they can be pruned while the run goes on.
    shutil.rmtree(checkpoint)
    for which in ((policy, optimizer), (other, empty)):
        step(*which, seed=3)
    assert bits(other.weights()) == bits(policy.weights())
    assert bits(empty.state()) == bits(optimizer.state())


def test_every_field_of_the_state_is_kept(tmp_path: Path) -> None:
    default = TrainState()
    for field in fields(TrainState):
        assert getattr(STATE, field.name) != getattr(default, field.name), field.name
    policy, optimizer = filled(123.0)
    assert (
        load_checkpoint(save_checkpoint(tmp_path, STATE, policy, optimizer, keep=1), policy, optimizer)
        == STATE
    )


def test_before_the_first_update(tmp_path: Path) -> None:
    policy, optimizer = small_policy(), Optimizer(OptimizerConfig(), seed=0)
    checkpoint = save_checkpoint(tmp_path, TrainState(), policy, optimizer, keep=1)
    restored = Optimizer(OptimizerConfig(), seed=0)
    restored.restore(moments(policy.weights()), 3)
    assert load_checkpoint(checkpoint, policy, restored) == TrainState()
    assert (restored.count, restored.state()) == (0, {})


def test_the_newest_are_kept(tmp_path: Path) -> None:
    policy, optimizer = filled(0.0)
    for number in (3, 20, 100, 999_999, 1_000_000):
        save_checkpoint(tmp_path, TrainState(step=number), policy, optimizer, keep=3)
    names = ["step-000100", "step-999999", "step-1000000"]  # by number, not by name
    assert [path.name for path in list_checkpoints(tmp_path)] == names
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    prune(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1000000"]
    prune(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1000000"]


def test_the_same_step_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, TrainState(step=7), *filled(1.0), keep=2)
    save_checkpoint(tmp_path, TrainState(step=7), *filled(7.0), keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000007"]
    assert check_filled(tmp_path / "step-000007") == 7


def test_only_whole_checkpoints_are_listed(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "absent") == []
    good = save_checkpoint(tmp_path, TrainState(step=5), *filled(5.0), keep=2)
    for name in (
        ".unfinished-000006-1",
        ".unfinished-pruned-step-000004",
        "step-6",
        "step-000006.old",
        "notes",
    ):
        shutil.copytree(good, tmp_path / name)
    assert list_checkpoints(tmp_path) == [good]
    save_checkpoint(tmp_path, TrainState(step=6), *filled(6.0), keep=2)
    left = {"step-000005", "step-000006", "step-6", "step-000006.old", "notes"}  # what is not ours stays
    assert {path.name for path in tmp_path.iterdir()} == left
    assert [check_filled(path) for path in list_checkpoints(tmp_path)] == [5, 6]


FILES = ["policy.safetensors", "optimizer.safetensors", "reference.safetensors"]


def damaged_checkpoint(tmp_path: Path) -> Path:
    policy, optimizer = filled(5.0)
    policy.reference = policy.snapshot()
    checkpoint = save_checkpoint(tmp_path, TrainState(step=5), policy, optimizer, keep=2)
    assert sorted(path.name for path in checkpoint.iterdir()) == sorted([*FILES, "state.json"])
    return checkpoint


def refuse(checkpoint: Path, file: str) -> None:
    """Refused by name, with nothing put back by halves."""
    policy, optimizer = filled(-1.0)
    with pytest.raises(UserError) as caught:
        load_checkpoint(checkpoint, policy, optimizer)
    sentence = str(caught.value)
    assert file in sentence
    assert str(checkpoint) in sentence
    assert "\n" not in sentence
    for array in (*policy.weights().values(), *optimizer.state().values()):
        assert (np.array(array) == -1).all()
    assert optimizer.count == -1
    assert policy.reference is None


@pytest.mark.parametrize("place", [0, 9, 0.5, -1])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_noticed(name: str, place: float, tmp_path: Path) -> None:
    checkpoint = damaged_checkpoint(tmp_path)
    content = bytearray((checkpoint / name).read_bytes())
    content[int(place * len(content)) if isinstance(place, float) else place] ^= 1
    (checkpoint / name).write_bytes(bytes(content))
    refuse(checkpoint, name)


def test_any_flipped_bit_of_the_state_is_noticed(tmp_path: Path) -> None:
    checkpoint = damaged_checkpoint(tmp_path)
    whole = (checkpoint / "state.json").read_bytes()
    for place in range(len(whole) - 1):  # all but the newline at its end
        content = bytearray(whole)
        content[place] ^= 1
        (checkpoint / "state.json").write_bytes(bytes(content))
        refuse(checkpoint, "state.json")
    (checkpoint / "state.json").write_bytes(whole)
    check_filled(checkpoint)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99, None])
@pytest.mark.parametrize("name", [*FILES, "state.json"])
def test_a_file_cut_short_or_missing_is_noticed(name: str, share: float | None, tmp_path: Path) -> None:
    checkpoint = damaged_checkpoint(tmp_path)
    file = checkpoint / name
    if share is None:
        file.unlink()
    else:
        os.truncate(file, int(file.stat().st_size * share))
    refuse(checkpoint, name)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"state": [], "sha256": {}}', '{"state": {"step": 5}}', "null", "5"]
)
def test_a_state_that_is_something_else(content: str, tmp_path: Path) -> None:
    checkpoint = damaged_checkpoint(tmp_path)
    (checkpoint / "state.json").write_text(content)
    refuse(checkpoint, "state.json")


def test_a_checkpoint_of_another_policy_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    policy, optimizer = load(folders["qwen2"], "lora", "float32"), Optimizer(OptimizerConfig(), seed=0)
    checkpoint = save_checkpoint(tmp_path, TrainState(step=1), policy, optimizer, keep=1)
    for tuning, family in (("full", "qwen2"), ("dora", "qwen2"), ("lora", "lfm2")):
        other = load(folders[family], tuning, "float32")
        before = bits(other.weights())
        with pytest.raises(UserError, match="does not fit the policy") as caught:
            load_checkpoint(checkpoint, other, Optimizer(OptimizerConfig(), seed=0))
        assert str(checkpoint) in str(caught.value)
        assert bits(other.weights()) == before

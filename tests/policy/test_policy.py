"""What a `Policy` promises: its weights, its reference, and that the model below the adapters is never touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file

from mlx_sumrl.config import LoraConfig, PolicyConfig
from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.export import export_adapter
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.policy import Policy
from tests.families import FAMILIES, full_logits, randomize_adapters

Folder = Callable[[str], Path]
ROW = [9, 8, 7, 100, 200, 30]


def load(folder: Path, tuning: str = "lora", dtype: str = "float32", layers: int = -1) -> Policy:
    lora = LoraConfig(rank=4, layers=layers)
    return load_policy(PolicyConfig(model=str(folder), tuning=tuning, dtype=dtype, lora=lora))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layers", [-1, 1])
@pytest.mark.parametrize("tuning", ["lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_off_is_the_base_model(
    family: str, tuning: str, layers: int, dtype: str, family_folder: Folder
) -> None:
    base = full_logits(load(family_folder(family), "full", dtype), ROW)
    policy = load(family_folder(family), tuning, dtype, layers)
    randomize_adapters(policy)
    moved = full_logits(policy, ROW)
    assert np.abs(moved - base).max() > 0.1
    with mlx_internals.adapters_off(policy.model):
        np.testing.assert_array_equal(full_logits(policy, ROW), base)
    np.testing.assert_array_equal(full_logits(policy, ROW), moved)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_trained_is_the_model_alone(family: str, family_folder: Folder) -> None:
    """No adapters beside its layers, nothing trainable, and the same logits as a policy that is about to be trained."""
    options = PolicyConfig(model=str(family_folder(family)), dtype="float32")
    policy = load_policy(options, trained=False)
    assert tree_flatten(policy.model.trainable_parameters()) == []
    names = [name for name, _ in tree_flatten(policy.model.parameters())]
    assert names
    assert not [name for name in names if "lora" in name]
    np.testing.assert_array_equal(full_logits(policy, ROW), full_logits(load_policy(options), ROW))


def test_a_given_adapter_is_there_untrained_too(family_folder: Folder, tmp_path: Path) -> None:
    trained = load(family_folder("qwen2"))
    randomize_adapters(trained)
    export_adapter(trained, tmp_path / "adapter")
    policy = load_policy(trained.options, adapter=str(tmp_path / "adapter"), trained=False)
    assert tree_flatten(policy.model.trainable_parameters()) == []
    np.testing.assert_array_equal(full_logits(policy, ROW), full_logits(trained, ROW))


def test_adapters_come_back_after_an_error(family_folder: Folder) -> None:
    policy = load(family_folder("lfm2"))
    randomize_adapters(policy)
    moved, names = full_logits(policy, ROW), list(policy.weights())
    with pytest.raises(KeyError, match="inside"), mlx_internals.adapters_off(policy.model):
        raise KeyError("inside")
    np.testing.assert_array_equal(full_logits(policy, ROW), moved)
    assert list(policy.weights()) == names


@pytest.mark.parametrize("tuning", ["lora", "dora"])
def test_the_reference_of_adapters_is_the_model_without_them(tuning: str, family_folder: Folder) -> None:
    policy = load(family_folder("qwen2"), tuning)
    base = full_logits(load(family_folder("qwen2"), "full"), ROW)
    randomize_adapters(policy)
    moved = full_logits(policy, ROW)
    assert policy.reference is None
    with policy.as_reference():
        np.testing.assert_array_equal(full_logits(policy, ROW), base)
    np.testing.assert_array_equal(full_logits(policy, ROW), moved)


@pytest.mark.parametrize("tuning", ["full", "lora", "dora"])
@pytest.mark.parametrize("training", [True, False])
def test_a_snapshot_as_reference(tuning: str, training: bool, family_folder: Folder) -> None:
    policy = load(family_folder("qwen2"), tuning)
    randomize_adapters(policy, seed=1)
    start = full_logits(policy, ROW)
    policy.reference = policy.snapshot()
    randomize_adapters(policy, seed=2)
    now, weights = full_logits(policy, ROW), policy.snapshot()
    policy.model.train(training)
    with policy.as_reference():
        assert not policy.model.training  # no dropout
        np.testing.assert_array_equal(full_logits(policy, ROW), start)
    assert policy.model.training is training
    np.testing.assert_array_equal(full_logits(policy, ROW), now)
    for name, array in policy.weights().items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)


def test_the_policy_comes_back_after_an_error_as_reference(family_folder: Folder) -> None:
    policy = load(family_folder("qwen2"))
    policy.reference = policy.snapshot()
    randomize_adapters(policy)
    moved = full_logits(policy, ROW)
    policy.model.train()
    with pytest.raises(KeyError, match="inside"), policy.as_reference():
        raise KeyError("inside")
    assert policy.model.training
    np.testing.assert_array_equal(full_logits(policy, ROW), moved)


def test_full_training_has_no_reference_of_its_own(family_folder: Folder) -> None:
    policy = load(family_folder("qwen2"), "full")
    policy.model.train()
    with pytest.raises(RuntimeError, match="snapshot"), policy.as_reference():
        pass
    assert policy.model.training


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_snapshot_is_independent(tuning: str, family_folder: Folder) -> None:
    policy = load(family_folder("qwen2"), tuning)
    randomize_adapters(policy, seed=1)
    snapshot = policy.snapshot()
    before = {name: np.array(array) for name, array in snapshot.items()}
    # In place, as an optimiser might, and by new arrays.
    for array in policy.weights().values():
        array += 1.0
    for name, array in snapshot.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
        assert np.all(np.array(policy.weights()[name]) != before[name]), name
    randomize_adapters(policy, seed=2)
    for name, array in snapshot.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    policy.set_weights(snapshot)
    for name, array in policy.weights().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


@pytest.mark.parametrize("tuning", ["full", "lora", "dora"])
def test_weights_that_do_not_fit_are_refused_and_change_nothing(tuning: str, family_folder: Folder) -> None:
    policy = load(family_folder("qwen2"), tuning)
    before = policy.snapshot()
    name = sorted(before)[-1]
    odd = {
        "missing": {key: array for key, array in before.items() if key != name},
        "unknown": before | {"model.layers.0.nothing": mx.zeros((2,))},
        "shape": {key: mx.ones_like(array) for key, array in before.items()} | {name: mx.zeros((1, 1, 1))},
        "none": {},
    }
    for kind, weights in odd.items():
        with pytest.raises(ValueError, match="do not fit") as caught:
            policy.set_weights(weights)
        if kind != "none":
            assert ("nothing" if kind == "unknown" else name) in str(caught.value)
    for key, array in policy.weights().items():
        np.testing.assert_array_equal(array, before[key], err_msg=key)


@pytest.mark.parametrize("tuning", ["lora", "dora"])
def test_the_model_below_the_adapters_is_never_trained(tuning: str, family_folder: Folder) -> None:
    policy = load(family_folder("lfm2"), tuning)
    randomize_adapters(policy)
    saved = load_file(family_folder("lfm2") / "model.safetensors")
    below = {
        name.replace(".linear.", "."): array
        for name, array in tree_flatten(policy.model.parameters())
        if name not in policy.weights()
    }
    assert below.keys() == saved.keys()
    for name, array in below.items():
        expected = saved[name].swapaxes(1, 2) if name.endswith("conv.conv.weight") else saved[name]
        np.testing.assert_array_equal(array, expected, err_msg=name)


@pytest.mark.parametrize("tuning", ["lora", "dora"])
def test_an_adapter_to_start_from_is_the_reference(
    tuning: str, family_folder: Folder, tmp_path: Path
) -> None:
    first = load(family_folder("qwen2"), tuning)
    randomize_adapters(first)
    start = full_logits(first, ROW)
    export_adapter(first, tmp_path / "adapter")
    # Its own kind, rank and scale are used, whatever the options say.
    options = PolicyConfig(
        model=str(family_folder("qwen2")), dtype="float32", tuning="lora", lora=LoraConfig(rank=3, alpha=99.0)
    )
    policy = load_policy(options, adapter=str(tmp_path / "adapter"))
    assert policy.options.tuning == tuning
    assert (policy.options.lora.rank, policy.options.lora.scale) == (4, first.options.lora.scale)
    np.testing.assert_array_equal(full_logits(policy, ROW), start)
    randomize_adapters(policy, seed=5)
    with policy.as_reference():
        np.testing.assert_array_equal(full_logits(policy, ROW), start)

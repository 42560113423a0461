"""Every family through `load_policy`: the whole model, the split at the head, and what is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model
from safetensors.numpy import load_file

from mlx_sumrl.config import LoraConfig, PolicyConfig
from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.policy import Policy
from tests.families import FAMILIES, D, family_config, linear_shapes, parameter_count

TOKENS = mx.array([[5, 6, 7, 8, 9, 250, 11, 12], [200, 3, 4, 90, 91, 92, 2, 40]])
RANK = 4

Folder = Callable[[str], Path]


def load(
    folder: Path, tuning: str = "full", dtype: str = "float32", lora: LoraConfig | None = None
) -> Policy:
    options = PolicyConfig(model=str(folder), tuning=tuning, dtype=dtype, lora=lora or LoraConfig(rank=RANK))
    return load_policy(options)


@pytest.mark.parametrize("tuning", ["full", "lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_is_the_model_of_the_files(family: str, tuning: str, family_folder: Folder) -> None:
    policy = load(family_folder(family), tuning)
    whole = policy.model(TOKENS)
    hidden = mlx_internals.backbone(policy.model, TOKENS)
    assert hidden.shape == (2, 8, D)
    np.testing.assert_allclose(mlx_internals.head(policy.model, hidden), whole, atol=1e-5)
    # New adapters change nothing: the logits are those of the folder as mlx-lm loads it by itself.
    plain, _ = load_model(family_folder(family))
    np.testing.assert_allclose(whole, plain(TOKENS), atol=1e-4 if tuning == "dora" else 0)


@pytest.mark.parametrize("tuning", ["full", "lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_keeps_its_logits_in_float32(family: str, tuning: str, family_folder: Folder) -> None:
    policy = load(family_folder(family), tuning, "bfloat16")
    base = {
        name: array
        for name, array in tree_flatten(policy.model.parameters())
        if name.rsplit(".", 1)[-1] not in mlx_internals.ADAPTER_LEAVES
    }
    assert {array.dtype for array in base.values()} == {mx.bfloat16}
    hidden = mlx_internals.backbone(policy.model, TOKENS)
    assert hidden.dtype == mx.bfloat16
    split = mlx_internals.head(policy.model, hidden)
    assert split.dtype == mx.float32
    # The head's product, in float64, from the hidden states it was given: no rounding of logits to bfloat16.
    head = "lm_head.weight" if "lm_head.weight" in base else "model.embed_tokens.weight"
    weight = np.array(base[head].astype(mx.float32), dtype=np.float64)
    exact = np.array(hidden.astype(mx.float32), dtype=np.float64) @ weight.T
    np.testing.assert_allclose(split, exact, atol=1e-4)
    # The model's own logits are the same, rounded to 8 bits.
    np.testing.assert_allclose(policy.model(TOKENS).astype(mx.float32), exact, rtol=2**-7, atol=0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_trains_every_parameter(family: str, family_folder: Folder) -> None:
    folder = family_folder(family)
    weights = load(folder).weights()
    assert sum(array.size for array in weights.values()) == parameter_count(family_config(family))
    assert "model.embed_tokens.weight" in weights
    saved = load_file(folder / "model.safetensors")
    assert weights.keys() == saved.keys()
    for name, array in weights.items():
        expected = saved[name].swapaxes(1, 2) if name.endswith("conv.conv.weight") else saved[name]
        np.testing.assert_array_equal(np.array(array), expected, err_msg=name)


@pytest.mark.parametrize("tuning", ["lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_all_that_is_trained(family: str, tuning: str, family_folder: Folder) -> None:
    policy = load(family_folder(family), tuning)
    expected: dict[str, tuple[int, ...]] = {}
    for index, block in enumerate(linear_shapes(family_config(family))):
        for name, inputs, outputs in block:
            path = f"model.layers.{index}.{name}"
            expected |= {f"{path}.lora_a": (inputs, RANK), f"{path}.lora_b": (RANK, outputs)}
            if tuning == "dora":
                expected[f"{path}.m"] = (outputs,)
    assert {name: array.shape for name, array in policy.weights().items()} == expected


@pytest.mark.parametrize("family", ["qwen2", "phi3", "lfm2"])
def test_chosen_layers_and_keys_only(family: str, family_folder: Folder) -> None:
    keys = {"qwen2": "self_attn.q_proj", "phi3": "self_attn.qkv_proj", "lfm2": "conv.in_proj"}
    lora = LoraConfig(rank=2, alpha=3.0, layers=1, keys=(keys[family],))
    policy = load(family_folder(family), "lora", lora=lora)
    shapes = {name: (inputs, outputs) for name, inputs, outputs in linear_shapes(family_config(family))[-1]}
    inputs, outputs = shapes[keys[family]]
    path = f"model.layers.2.{keys[family]}"
    assert {name: array.shape for name, array in policy.weights().items()} == {
        f"{path}.lora_a": (inputs, 2),
        f"{path}.lora_b": (2, outputs),
    }
    [(name, module)] = mlx_internals.adapter_modules(policy.model)
    assert (name, module.scale) == (path, 1.5)


def test_the_seed_draws_the_adapters(family_folder: Folder) -> None:
    options = PolicyConfig(model=str(family_folder("qwen2")), tuning="lora", dtype="float32")
    first, same, other = (load_policy(options, seed=seed).weights() for seed in (7, 7, 8))
    for name, array in first.items():
        np.testing.assert_array_equal(array, same[name], err_msg=name)
        if name.endswith("lora_b"):
            assert not np.array(array).any()
        else:
            assert np.all(np.array(array) != np.array(other[name])), name


def test_what_a_policy_knows_about_its_model(family_folder: Folder) -> None:
    policy = load_policy(str(family_folder("llama")))
    assert policy.stop_ids == {2}
    assert policy.stop_id == 2
    assert policy.context == 128
    assert policy.vocabulary == len(policy.tokenizer)
    assert not policy.reconciled
    assert policy.decode([1, *policy.tokenizer.encode("at noon"), 2]) == "at noon"

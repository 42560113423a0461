"""Adapters on a head that is not tied to the embedding: trained, switched off, exported, loaded by mlx_lm."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import load
from safetensors.numpy import load_file, save_file

from mlx_sumrl.config import GrpoConfig, LoraConfig, OptimizerConfig, PolicyConfig, SamplingConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.export import export_adapter, export_model, export_peft
from mlx_sumrl.policy.head import HeadOptions
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.packing import pack
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.training.gradient import batch_gradient
from mlx_sumrl.training.grpo import TrainingRow, grpo_gradient
from mlx_sumrl.training.micro_batch import BatchGradient, MicroBatch
from mlx_sumrl.training.optimizer import Optimizer
from mlx_sumrl.training.update import Guard, apply_update
from tests.families import full_logits, randomize_adapters, write_model
from tests.training.models import random_rows, weighted_gradient

Folder = Callable[[str], Path]
ROW = [9, 8, 7, 100, 200, 30]
UNTIED = ("qwen2-untied", "llama-untied", "phi3")


def adapted(folder: Path, *keys: str, checkpointing: bool = False, **options: Any) -> Policy:
    lora = LoraConfig(**({"rank": 4, "alpha": 6.0, "keys": keys} | options.pop("lora", {})))
    return load_policy(
        PolicyConfig(
            model=str(folder), dtype="float32", gradient_checkpointing=checkpointing, lora=lora, **options
        )
    )


def batch(policy: Policy, rows: Sequence[TrainingRow]) -> BatchGradient:
    """Loss and gradient of minus the sum of all log-probabilities."""
    packed = pack([(row.prompt_ids, row.completion.token_ids) for row in rows], share_prompt=True)
    part = MicroBatch(packed, lambda logprobs: (-logprobs.sum(), {}))
    return batch_gradient(policy, [part], HeadOptions(budget=1_000_000))


def logits_of(model: Any) -> np.ndarray:
    model.eval()
    return np.array(model(mx.array([ROW]))[0].astype(mx.float32))


@pytest.mark.parametrize("family", UNTIED)
def test_only_when_it_is_named(family: str, family_folder: Folder) -> None:
    policy = load_policy(PolicyConfig(model=str(family_folder(family))))
    assert "lm_head" not in (policy.options.lora.keys or ())
    assert not [name for name in policy.weights() if "lm_head" in name]
    assert set(adapted(family_folder(family), "lm_head").weights()) == {"lm_head.lora_a", "lm_head.lora_b"}


def test_a_tied_head_has_none(family_folder: Folder) -> None:
    with pytest.raises(UserError, match=r"'lm_head' matches no linear layer .* layers are mlp\.down_proj"):
        adapted(family_folder("qwen2"), "lm_head")
    with pytest.raises(UserError, match=r"did you mean 'lm_head'.*, lm_head$"):
        adapted(family_folder("phi3"), "lmhead")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("keys", [("lm_head",), ("lm_head", "mlp.down_proj")])
@pytest.mark.parametrize("tuning", ["lora", "dora"])
def test_training_moves_it(
    tuning: str, keys: tuple[str, ...], checkpointing: bool, family_folder: Folder
) -> None:
    policy = adapted(family_folder("llama-untied"), *keys, tuning=tuning, checkpointing=checkpointing)
    base = full_logits(policy, ROW)
    randomize_adapters(policy)
    rows = random_rows(policy, staleness=0.1)
    truth = weighted_gradient(policy, rows, [[-1.0] * len(row.completion.token_ids) for row in rows])
    assert mx.abs(truth["lm_head.lora_a"]).max().item() > 0.01
    before = policy.snapshot()
    found = batch(policy, rows).gradients
    assert found.keys() == truth.keys()
    for name, array in truth.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-4 * float(mx.abs(array).max()))
    options, sampling = GrpoConfig(beta=0.1), SamplingConfig(max_tokens=64)
    gradient = grpo_gradient(policy, rows, options, sampling)
    assert gradient.sums["kl"] > 0.01  # the reference is the model without any of its adapters
    apply_update(policy, Optimizer(OptimizerConfig(), 0), Guard(1), gradient, 0.01)
    assert all(mx.any(array != before[name]).item() for name, array in policy.weights().items())
    with mlx_internals.adapters_off(policy.model):
        np.testing.assert_array_equal(full_logits(policy, ROW), base)
    assert np.abs(full_logits(policy, ROW) - base).max() > 0.5


@pytest.mark.parametrize("tuning", ["lora", "dora"])
@pytest.mark.parametrize("family", UNTIED)
def test_mlx_lm_loads_what_is_exported(
    family: str, tuning: str, family_folder: Folder, tmp_path: Path
) -> None:
    # Of one block only: mlx-lm gives the head its adapter whatever num_layers is.
    key = "mlp.down_proj"
    policy = adapted(family_folder(family), "lm_head", key, tuning=tuning, lora={"layers": 1})
    randomize_adapters(policy)
    ours = full_logits(policy, ROW)
    adapter = export_adapter(policy, tmp_path / "adapter")
    assert "lm_head.lora_a" in load_file(adapter / "adapters.safetensors")
    loaded, _ = load(str(family_folder(family)), adapter_path=str(adapter))
    np.testing.assert_allclose(logits_of(loaded), ours, atol=1e-4)
    again = load_policy(PolicyConfig(model=str(family_folder(family)), dtype="float32"), adapter=str(adapter))
    np.testing.assert_allclose(full_logits(again, ROW), ours, atol=1e-4)
    merged, _ = load(str(export_model(policy, tmp_path / "model")))
    np.testing.assert_allclose(logits_of(merged), ours, atol=1e-4)


@pytest.mark.parametrize(
    ("layers", "targets"),
    [(-1, ["down_proj", "lm_head"]), (1, ["lm_head", "model.layers.2.mlp.down_proj"])],
)
def test_peft_names_it(layers: int, targets: list[str], family_folder: Folder, tmp_path: Path) -> None:
    policy = adapted(family_folder("llama-untied"), "lm_head", "mlp.down_proj", lora={"layers": layers})
    randomize_adapters(policy)
    adapter = export_peft(policy, tmp_path / "peft")
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["target_modules"] == targets
    # PEFT leaves out what is in no layer where layers_to_transform is given.
    assert config["layers_to_transform"] is None
    base = load_file(family_folder("llama-untied") / "model.safetensors")
    tensors = load_file(adapter / "adapter_model.safetensors")
    paths = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        for name in tensors
        if "lora_A" in name
    }
    for path in paths:
        assert any(path == target or path.endswith(f".{target}") for target in targets)
        a, b = (tensors.pop(f"base_model.model.{path}.lora_{which}.weight") for which in "AB")
        base[f"{path}.weight"] = base[f"{path}.weight"] + (6.0 / 4) * (b @ a)
    assert "lm_head" in paths
    assert not tensors
    merged = write_model(tmp_path / "merged", "llama-untied")
    save_file(base, merged / "model.safetensors", metadata={"format": "pt"})
    loaded, _ = load(str(merged))
    np.testing.assert_allclose(logits_of(loaded), full_logits(policy, ROW), atol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_is_the_same_in_both_passes(checkpointing: bool, family_folder: Folder) -> None:
    """The head is computed again in the backward pass: a numerical slope along the gradient is its length squared."""
    policy = adapted(
        family_folder("llama-untied"), "lm_head", checkpointing=checkpointing, lora={"dropout": 0.5}
    )
    randomize_adapters(policy)
    rows = random_rows(policy, staleness=0.1)
    own = policy.weights()

    def loss(scale: float) -> float:
        mx.random.seed(7)
        policy.set_weights({name: array + scale * found[name] for name, array in own.items()})
        return batch(policy, rows).loss

    mx.random.seed(7)
    found = batch(policy, rows).gradients
    step = 1e-5
    squared = sum(float(mx.square(array).sum().item()) for array in found.values())
    assert (loss(step) - loss(-step)) / (2 * step) == pytest.approx(squared, rel=0.02)

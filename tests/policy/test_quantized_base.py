"""A base that is quantised already, as mlx_lm.convert writes it: adapters train on it, full tuning says no."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm import convert, load

from mlx_sumrl.config import GrpoConfig, LoraConfig, OptimizerConfig, PolicyConfig, SamplingConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.export import export_adapter
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.rollouts.local import LocalSampler
from mlx_sumrl.rollouts.types import Group, Sampling
from mlx_sumrl.training.advantages import Advantages
from mlx_sumrl.training.grpo import grpo_gradient, training_rows
from mlx_sumrl.training.optimizer import Optimizer
from mlx_sumrl.training.update import Guard, apply_update
from tests.families import completion_truth, full_logits, random_prompts, write_model

ROW = [9, 8, 7, 100, 200, 30]


@pytest.fixture(scope="module", params=["qwen2", "llama-untied", "lfm2"])
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder in 4 bits; its config.json says so."""
    base = tmp_path_factory.mktemp("quantized")
    plain = write_model(base / "plain", request.param)
    convert(str(plain), str(base / "4bit"), quantize=True, q_group_size=32, q_bits=4)
    config = json.loads((base / "4bit" / "config.json").read_text())
    assert (config["quantization"]["bits"], config["quantization"]["group_size"]) == (4, 32)
    return base / "4bit"


def adapted(folder: Path, tuning: str = "lora", checkpointing: bool = False) -> Policy:
    return load_policy(
        PolicyConfig(
            model=str(folder),
            tuning=tuning,
            dtype="float32",
            gradient_checkpointing=checkpointing,
            lora=LoraConfig(rank=4),
        )
    )


def gained(policy: Policy, groups: Sequence[Group], advantages_PG: np.ndarray) -> float:
    """Sum of advantage x log p over all tokens, one row at a time: what a step has to raise."""
    plain: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    return sum(
        advantage * completion_truth(policy, group.example.prompt_ids, row.token_ids, **plain).sum()
        for group, advantages in zip(groups, advantages_PG, strict=True)
        for row, advantage in zip(group.completions, advantages, strict=True)
    )


def test_full_tuning_names_the_ways_out(quantized: Path) -> None:
    with pytest.raises(UserError) as caught:
        adapted(quantized, "full")
    sentence = str(caught.value)
    for word in ("policy.tuning full", str(quantized), "quantised", "policy.tuning lora", "policy.model"):
        assert word in sentence


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("tuning", ["lora", "dora"])
def test_adapters_train_a_step(quantized: Path, tuning: str, checkpointing: bool, tmp_path: Path) -> None:
    policy = adapted(quantized, tuning, checkpointing)
    kinds = {type(module) for _, module in policy.model.named_modules()}
    assert kinds & {nn.QuantizedLinear, nn.QuantizedEmbedding}
    before = full_logits(policy, ROW)
    plain, _ = load(str(quantized))
    np.testing.assert_allclose(np.array(plain(mx.array([ROW]))[0].astype(mx.float32)), before, atol=1e-4)

    groups = LocalSampler(policy).sample(random_prompts([9, 5]), 4, Sampling(max_tokens=6), seed=0)
    advantages_PG = np.tile([1.0, -1.0], (2, 2))
    options, sampling = GrpoConfig(beta=0.1), SamplingConfig(max_tokens=6)
    gradient = grpo_gradient(policy, training_rows(groups, Advantages(advantages_PG, 0)), options, sampling)
    assert gradient.sums["kl"] == pytest.approx(0, abs=1e-5)  # its reference is the base, which it still is
    steep = {name: mx.abs(array).max().item() > 0 for name, array in gradient.gradients.items()}
    assert all(moves for name, moves in steep.items() if name.endswith("lora_b"))
    wanted = gained(policy, groups, advantages_PG)
    apply_update(policy, Optimizer(OptimizerConfig(), 0), Guard(1), gradient, 0.002)
    assert gained(policy, groups, advantages_PG) > wanted + 0.01
    after = full_logits(policy, ROW)

    adapter = export_adapter(policy, tmp_path / "adapter")
    loaded, _ = load(str(quantized), adapter_path=str(adapter))
    loaded.eval()
    np.testing.assert_allclose(np.array(loaded(mx.array([ROW]))[0].astype(mx.float32)), after, atol=1e-4)

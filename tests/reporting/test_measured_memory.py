"""The estimated peak of a step's phases against what MLX measures of them."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_sumrl.config import GrpoConfig, OptimizerConfig, PolicyConfig, SamplingConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.reporting.memory_estimate import estimate_peak
from mlx_sumrl.reporting.model_shape import ModelShape
from mlx_sumrl.rollouts.local import LocalSampler
from mlx_sumrl.rollouts.types import Sampling
from mlx_sumrl.training.advantages import Advantages
from mlx_sumrl.training.grpo import grpo_gradient, training_rows
from mlx_sumrl.training.micro_batch import BatchGradient
from mlx_sumrl.training.optimizer import Optimizer
from mlx_sumrl.training.update import Guard, apply_update

CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 300,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
}


def measured_step(
    step: dict[str, Any], *, tuning: str, dtype: str, checkpointing: bool, reference: str | None = None
) -> tuple[ModelShape, dict[str, int]]:
    """Peaks of a whole step's phases, whose optimiser has its moments already."""
    gc.collect()
    mx.synchronize()
    start = mx.get_active_memory()  # what other tests have left in this process
    mx.random.seed(0)
    model = mlx_internals.new_model(CONFIG)
    model.set_dtype(getattr(mx, dtype))
    if tuning == "full":
        model.unfreeze()
    else:
        model.freeze()
        names = mlx_internals.linear_names(model)
        mlx_internals.add_adapters(model, rank=8, scale=1.0, dropout=0.0, layers=-1, keys=names, dora=False)
    options = PolicyConfig(
        model="wide", tuning=tuning, dtype=dtype, gradient_checkpointing=checkpointing, logits_mb=1
    )
    policy = Policy(
        model,
        SimpleNamespace(decode=lambda ids, **_: ""),
        CONFIG,
        Path("wide"),
        options,
        stop_ids=frozenset(),  # nothing ends a completion but its length
        stop_id=0,
    )
    mx.eval(model.parameters())
    if reference is not None:
        policy.take_reference(reference)
    optimizer, guard = Optimizer(OptimizerConfig(), 0), Guard(1)
    zeros = {name: mx.zeros_like(array) for name, array in policy.weights().items()}
    apply_update(policy, optimizer, guard, BatchGradient(0.0, zeros, {}), 1e-4)
    del zeros
    mx.clear_cache()

    P, G, T = step["prompts_per_step"], step["group_size"], step["completion_tokens"]
    ids = np.random.default_rng(0).integers(3, 300, (P, step["prompt_tokens"]))
    examples = [Example(str(i), tuple(row.tolist()), "", "", "") for i, row in enumerate(ids)]
    grpo = GrpoConfig(
        prompts_per_step=P,
        group_size=G,
        micro_batch_tokens=step["micro_batch_tokens"],
        beta=0.0 if reference is None else 0.1,
    )
    peaks: dict[str, int] = {}
    mx.reset_peak_memory()
    groups = LocalSampler(policy).sample(examples, G, Sampling(max_tokens=T), seed=0)
    peaks["rollout"] = mx.get_peak_memory() - start
    mx.reset_peak_memory()
    rows = training_rows(groups, Advantages(np.tile([1.0, -1.0], (P, G // 2)), 0))
    gradient = grpo_gradient(policy, rows, grpo, SamplingConfig(max_tokens=T))
    peaks["gradient"] = mx.get_peak_memory() - start
    mx.reset_peak_memory()
    apply_update(policy, optimizer, guard, gradient, 1e-4)
    peaks["step"] = mx.get_peak_memory() - start
    return ModelShape.from_config(CONFIG), peaks


WHOLE_GROUPS = {
    "prompt_tokens": 100,
    "completion_tokens": 33,
    "prompts_per_step": 2,
    "group_size": 4,
    "micro_batch_tokens": 4096,
}
LONG_PROMPT = WHOLE_GROUPS | {"prompt_tokens": 400, "prompts_per_step": 1, "group_size": 8}
ROW_BY_ROW = WHOLE_GROUPS | {"micro_batch_tokens": 140}


class TestMeasured:
    @pytest.mark.parametrize("checkpointing", [True, False])
    @pytest.mark.parametrize(
        ("step", "tuning", "dtype"),
        [
            (WHOLE_GROUPS, "full", "float32"),
            (WHOLE_GROUPS, "lora", "float32"),
            (WHOLE_GROUPS, "full", "bfloat16"),
            (LONG_PROMPT, "full", "float32"),
            (LONG_PROMPT, "lora", "bfloat16"),
            (ROW_BY_ROW, "full", "float32"),
            (ROW_BY_ROW, "lora", "float32"),
        ],
    )
    def test_near_what_mlx_measures(
        self, step: dict[str, Any], tuning: Any, dtype: Any, checkpointing: bool
    ) -> None:
        shape, measured = measured_step(step, tuning=tuning, dtype=dtype, checkpointing=checkpointing)
        estimate = estimate_peak(
            shape,
            tuning=tuning,
            dtype=dtype,
            gradient_checkpointing=checkpointing,
            logits_mb=1,
            max_rows=64,
            **step,
        )
        for phase, peak in measured.items():
            assert 0.8 < getattr(estimate, phase) / peak < 1.3, phase
        assert 0.9 < estimate.total / max(measured.values()) < 1.3

    @pytest.mark.parametrize("reference", ["copy", "4bit"])
    def test_with_a_reference(self, reference: Any) -> None:
        shape, measured = measured_step(
            WHOLE_GROUPS, tuning="full", dtype="float32", checkpointing=True, reference=reference
        )
        estimate = estimate_peak(
            shape,
            tuning="full",
            dtype="float32",
            gradient_checkpointing=True,
            logits_mb=1,
            max_rows=64,
            reference=reference,
            **WHOLE_GROUPS,
        )
        assert 0.9 < estimate.total / max(measured.values()) < 1.3

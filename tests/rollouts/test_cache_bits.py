"""Sampling with keys and values in 8 or 4 bits."""

from __future__ import annotations

import math
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file

from mlx_sumrl import UserError
from mlx_sumrl.config import PolicyConfig, RunConfig, SamplingConfig
from mlx_sumrl.policy import mlx_internals, sampling_cache
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.policy.sampling_cache import BatchCache, BatchState, QuantizedBatchCache, spread
from mlx_sumrl.rollouts import local
from mlx_sumrl.rollouts.local import LocalSampler
from mlx_sumrl.rollouts.types import Group, Sampling
from mlx_sumrl.training.trainer import Trainer
from tests.families import (
    D,
    completion_truth,
    family_config,
    random_prompts,
    random_weights,
    tokenizer,
    write_config,
)

PROMPTS = random_prompts([3, 11, 1, 7])
SAMPLING = Sampling(max_tokens=16)


def load(folder: Path, family: str, head_dim: int, dtype: str = "float32", heads: int = 4) -> Policy:
    """A random policy whose attention heads have that size; half as many of them for keys and values."""
    width = heads * head_dim
    config = family_config(family) | {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
    }
    if family == "lfm2":
        config |= {"block_dim": width}
    if family == "qwen3":
        config |= {"head_dim": head_dim}
    folder.mkdir()
    weights = random_weights(config)
    for name in weights:  # for logits as large as those of the usual width
        if "embed_tokens" in name or "lm_head" in name:
            weights[name] *= math.sqrt(D / width)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_config(folder, config)
    tokenizer().save_pretrained(folder)
    policy = load_policy(PolicyConfig(model=str(folder), tuning="full", dtype=dtype))
    policy.stop_ids = frozenset({2, *range(40, 55)})
    return policy


def differences(policy: Policy, groups: list[Group]) -> np.ndarray:
    """Of all log-probabilities to those of the policy with an exact cache."""
    gaps = [
        np.array(row.logprobs)
        - completion_truth(
            policy, group.example.prompt_ids, row.token_ids, temperature=1.0, top_p=1.0, top_k=0
        )
        for group in groups
        for row in group.completions
    ]
    return np.concatenate(gaps)


@pytest.mark.parametrize(("bits", "usual", "most"), [(8, 0.02, 0.1), (4, 0.4, 1.5)])
@pytest.mark.parametrize(("family", "head_dim"), [("qwen2", 32), ("qwen3", 64), ("phi3", 96), ("lfm2", 64)])
def test_log_probabilities_are_near_the_exact_ones(
    family: str, head_dim: int, bits: int, usual: float, most: float, tmp_path: Path
) -> None:
    policy = load(tmp_path / family, family, head_dim)
    gaps = np.abs(differences(policy, LocalSampler(policy, cache_bits=bits).sample(PROMPTS, 4, SAMPLING, 0)))
    assert np.median(gaps) < usual
    assert gaps.max() < most
    assert gaps.max() > 1e-5  # and quantised it was


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", ["qwen2", "phi3", "lfm2"])
def test_they_are_those_of_rounded_keys_and_values(
    family: str, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy that sampled is the exact one with its keys and values rounded, and nothing else is different."""
    policy = load(tmp_path / family, family, 32)
    groups = LocalSampler(policy, cache_bits=bits).sample(PROMPTS, 6, SAMPLING, 3)

    class Rounded(BatchCache):
        def __init__(self, prompts: object, repeats: object, room: int, bits: int) -> None:
            super().__init__(prompts, repeats, room)  # type: ignore[arg-type]

        def _stored(self, array: mx.array) -> tuple[mx.array, ...]:
            return (mx.dequantize(*mx.quantize(array, group_size=32, bits=bits), group_size=32, bits=bits),)

    monkeypatch.setattr(sampling_cache, "QuantizedBatchCache", Rounded)
    rounded = LocalSampler(policy, cache_bits=bits).sample(PROMPTS, 6, SAMPLING, 3)
    gaps = []
    for group, same in zip(groups, rounded, strict=True):
        for row, other in zip(group.completions, same.completions, strict=True):
            assert row.token_ids == other.token_ids
            gaps.append(np.abs(np.subtract(row.logprobs, other.logprobs)))
    # A value at the edge of two codes may fall on either side, and shows in all that follows.
    assert np.median(np.concatenate(gaps)) < 1e-5
    assert np.concatenate(gaps).max() < 5e-3
    assert np.median(np.abs(differences(policy, groups))) > 1e-4  # against an exact cache


@pytest.mark.parametrize("retire_at", [0, 1])
def test_retiring_rows_does_not_show(retire_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load(tmp_path / "qwen2", "qwen2", 32)
    usual = LocalSampler(policy, cache_bits=8).sample(PROMPTS, 6, SAMPLING, 3)
    monkeypatch.setattr(local, "RETIRE_AT", retire_at)
    others = LocalSampler(policy, cache_bits=8).sample(PROMPTS, 6, SAMPLING, 3)
    rows = [row for group in usual for row in group.completions]
    assert len({len(row.token_ids) for row in rows}) > 2
    assert [row.token_ids for row in rows] == [row.token_ids for group in others for row in group.completions]


@pytest.mark.parametrize(
    ("dtype", "head_dim", "bits", "share"),
    [
        # A code for each value, and of each 64 (32) values a scale and a bias of the type that is quantised.
        ("float32", 64, 8, (64 + 8) / 256),
        ("float32", 64, 4, (32 + 8) / 256),
        ("float32", 32, 8, (32 + 8) / 128),
        ("bfloat16", 64, 8, (64 + 4) / 128),
        ("bfloat16", 64, 4, (32 + 4) / 128),
    ],
)
def test_the_cache_is_smaller(dtype: str, head_dim: int, bits: int, share: float, tmp_path: Path) -> None:
    policy = load(tmp_path / "lfm2", "lfm2", head_dim, dtype)
    cache = mlx_internals.prompt_cache(policy.model)
    mlx_internals.backbone(policy.model, mx.array([PROMPTS[1].prompt_ids]), cache)

    def size(bits: int | None, kind: type) -> int:
        caches = [one for one in spread([cache], [4], 20, bits) if type(one) is kind]
        arrays = [array for one in caches for array in one.arrays]
        mx.eval(arrays)
        return sum(array.nbytes for array in arrays)

    assert size(bits, QuantizedBatchCache) == pytest.approx(share * size(None, BatchCache))
    assert size(bits, BatchState) == size(None, BatchState) > 0  # convolutions stay as they are


def test_heads_that_do_not_fit_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    policy = load(tmp_path / "qwen2", "qwen2", 16)
    config = RunConfig.model_validate({"policy": policy.options, "sampling": {"cache_bits": 8}})
    for make in (lambda: LocalSampler(policy, cache_bits=8), lambda: Trainer(policy, config)):
        with pytest.raises(
            UserError, match=r"sampling.cache_bits 8: this model's attention heads have 16 values"
        ):
            make()
    LocalSampler(policy)


def test_other_numbers_of_bits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="cache_bits"):
        SamplingConfig(cache_bits=5)  # type: ignore[arg-type]
    policy = load(tmp_path / "qwen2", "qwen2", 32)
    with pytest.raises(UserError, match=r"sampling.cache_bits 5: .* 4 or 8"):
        LocalSampler(policy, cache_bits=5)

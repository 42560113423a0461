"""Configs that mlx-lm would misread: what was meant is loaded, or the folder is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig

from mlx_sumrl.config import PolicyConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.policy.reconcile import context_length, reconciled_config
from tests.families import VOCABULARY, family_config, full_logits, write_model

ROW = [9, 8, 7, 100, 200, 30, 31, 32, 33, 34]


def load(folder: Path) -> Policy:
    return load_policy(PolicyConfig(model=str(folder), tuning="full", dtype="float32"))


def rotary_bases(model: nn.Module) -> set[float]:
    return {module.base for _, module in model.named_modules() if isinstance(module, nn.RoPE)}


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "phi3", "lfm2"])
def test_nested_rotary_base_counts_as_a_top_level_one(family: str, tmp_path: Path) -> None:
    plain = load(write_model(tmp_path / "plain", family, rope_theta=5000.0))
    nested = {"rope_theta": 5000.0, "rope_type": "default"}
    modern = load(write_model(tmp_path / "modern", family, rope_theta=None, rope_parameters=nested))
    assert rotary_bases(modern.model) == {5000.0}
    np.testing.assert_array_equal(full_logits(modern, ROW), full_logits(plain, ROW))
    other = load(write_model(tmp_path / "other", family, rope_theta=10000.0))
    assert np.abs(full_logits(other, ROW) - full_logits(plain, ROW)).max() > 1e-3  # the base matters at all


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "phi3", "lfm2"])
def test_no_rotary_base_means_the_default_of_transformers(family: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", family, rope_theta=None)
    truth = AutoConfig.from_pretrained(folder).rope_parameters["rope_theta"]
    assert rotary_bases(load(folder).model) == {truth}


def test_nested_rotary_scaling_is_used(tmp_path: Path) -> None:
    # Linear scaling by 4 divides positions: position 4 n is as position n without it.
    nested = {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}
    scaled = load(write_model(tmp_path / "scaled", "llama", rope_theta=None, rope_parameters=nested))
    plain = load(write_model(tmp_path / "plain", "llama"))
    x = mx.random.normal((1, 4, 6, 8), key=mx.random.key(0))
    rotate_scaled = scaled.model.model.layers[0].self_attn.rope
    rotate_plain = plain.model.model.layers[0].self_attn.rope
    for n in range(3):
        np.testing.assert_allclose(
            rotate_scaled(x[:, :, :1], offset=4 * n), rotate_plain(x[:, :, :1], offset=n), atol=1e-6
        )


def test_phi3_reads_its_nested_partial_rotation(tmp_path: Path) -> None:
    nested = {"rope_theta": 10000.0, "rope_type": "default", "partial_rotary_factor": 0.5}
    policy = load(write_model(tmp_path / "model", "phi3", rope_theta=None, rope_parameters=nested))
    assert policy.model.model.layers[0].self_attn.rope.dims == 4  # half of the head's 8


REFUSED = [
    ("qwen2", {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "rope_theta as 10000"),
    (
        "phi3",
        {"partial_rotary_factor": 0.75, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor as 0.75",
    ),
    ("qwen2", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "per layer type"),
    ("lfm2", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
    ("lfm2", {"tie_embedding": False}, "untied"),
    ("qwen2", {"hidden_act": "gelu"}, "'gelu'"),
    ("qwen2", {"tie_word_embeddings": False}, "no lm_head.weight"),
    ("qwen2", {"model_type": "no_such_family"}, "no_such_family"),
]


@pytest.mark.parametrize(("family", "changes", "named"), REFUSED)
def test_what_mlx_lm_cannot_do_is_refused(
    family: str, changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model", family, **changes)
    with pytest.raises(UserError) as caught:
        load(folder)
    sentence = str(caught.value)
    assert named in sentence
    assert str(folder) in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("family", ["qwen2-untied", "llama-untied", "phi3"])
def test_a_head_in_the_weights_is_used_when_the_config_says_nothing(family: str, tmp_path: Path) -> None:
    # mlx-lm's qwen2 and llama would tie the head to the embeddings and drop lm_head.weight.
    said = load(write_model(tmp_path / "said", family))
    silent = load(write_model(tmp_path / "silent", family, tie_word_embeddings=None))
    np.testing.assert_array_equal(full_logits(silent, ROW), full_logits(said, ROW))
    head = load_file(tmp_path / "silent" / "model.safetensors")["lm_head.weight"]
    hidden = np.array(silent.model.model(mx.array([ROW]))[0], dtype=np.float64)
    np.testing.assert_allclose(full_logits(silent, ROW), hidden @ head.T.astype(np.float64), atol=1e-4)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_without_a_head_and_a_word_it_is_tied(family: str, tmp_path: Path) -> None:
    policy = load(write_model(tmp_path / "model", family, tie_word_embeddings=None))
    assert policy.config["tie_word_embeddings"] is True
    assert full_logits(policy, ROW).shape == (len(ROW), VOCABULARY)


def test_a_tied_model_with_a_stray_head_stays_tied(tmp_path: Path) -> None:
    # As in transformers: tie_word_embeddings true overwrites whatever lm_head.weight the file has.
    folder = write_model(tmp_path / "model", "qwen2")
    tied = full_logits(load(folder), ROW)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = np.ones_like(weights["model.embed_tokens.weight"])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    np.testing.assert_array_equal(full_logits(load(folder), ROW), tied)


def test_reconciling_leaves_the_given_config_alone() -> None:
    config = family_config("qwen2") | {"rope_theta": None, "rope_parameters": {"rope_theta": 7.0}}
    before = dict(config)
    again = reconciled_config(config, {"model.embed_tokens.weight"}, "m")
    assert config == before
    assert again["rope_theta"] == 7.0
    assert reconciled_config(again, {"model.embed_tokens.weight"}, "m") == again


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"max_position_embeddings": 512, "sliding_window": 64, "model_type": "phi3"}, 64),
        ({"max_position_embeddings": 512, "sliding_window": 64, "model_type": "qwen2"}, 512),
        ({"max_position_embeddings": 512, "sliding_window": 64, "use_sliding_window": True}, 64),
        ({"max_position_embeddings": 512, "sliding_window": None, "model_type": "phi3"}, 512),
        ({}, None),
    ],
)
def test_context_length(config: dict[str, Any], expected: int | None) -> None:
    assert context_length(config) == expected

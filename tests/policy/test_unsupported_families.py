"""A family whose blocks are not all there is to it is refused by name, not trained as another model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_sumrl.config import PolicyConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.loading import load_policy
from tests.families import tokenizer

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": 300,
    "eos_token_id": 2,
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def written(folder: Path, family: str, **more: Any) -> str:
    config = SMALL | {"model_type": family} | more
    tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    mx.random.seed(0)
    weights = mlx_internals.named_arrays(mlx_internals.new_model(config).parameters())
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    ("family", "more", "reason"),
    [
        ("gemma", {}, "scaled embeddings"),
        ("gemma2", {}, "scaled_dot_product_attention"),
        (
            "llama",
            {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
            "sliding windows",
        ),
    ],
)
def test_a_family_with_more_than_blocks_is_refused(
    tmp_path: Path, family: str, more: dict[str, Any], reason: str
) -> None:
    model = written(tmp_path, family, **more)
    with pytest.raises(UserError) as caught:
        load_policy(PolicyConfig(model=model, dtype="float32", tuning="full"))
    sentence = str(caught.value)
    assert sentence.startswith(model)
    assert reason in sentence
    assert "tested families: qwen2" in sentence
    assert "\n" not in sentence


def test_the_same_size_without_them_is_loaded(tmp_path: Path) -> None:
    policy = load_policy(PolicyConfig(model=written(tmp_path, "llama"), dtype="float32", tuning="full"))
    assert policy.weights()

"""Which two model folders are one model to a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.fingerprint import model_fingerprint
from mlx_sumrl.errors import UserError

CONFIG = {
    "model_type": "qwen2",
    "vocab_size": 100,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "tie_word_embeddings": True,
}


def folder(path: Path, tokenizer: str = "{}", **changes: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    (path / "tokenizer.json").write_text(tokenizer)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_theta": 10000.0},
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
        {"torch_dtype": "bfloat16"},
        {"dtype": "float32"},
        {"transformers_version": "5.0"},
        {"head_dim": None},
        {"head_dim": 4},
        {"_name_or_path": "elsewhere"},
    ],
)
def test_spelling_does_not_matter(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert model_fingerprint(folder(tmp_path / "a", **changes)) == model_fingerprint(folder(tmp_path / "b"))


@pytest.mark.parametrize("key", CONFIG)
def test_shape_matters(tmp_path: Path, key: str) -> None:
    other = {"model_type": "llama", "tie_word_embeddings": False}.get(key, 4)
    one, two = (
        model_fingerprint(folder(tmp_path / "a")),
        model_fingerprint(folder(tmp_path / "b", **{key: other})),
    )
    assert one.config != two.config
    assert one.tokenizer == two.tokenizer


def test_the_tokenizer_matters(tmp_path: Path) -> None:
    one, two = model_fingerprint(folder(tmp_path / "a")), model_fingerprint(folder(tmp_path / "b", "{} "))
    assert one.config == two.config
    assert one.tokenizer != two.tokenizer


def test_half_a_folder_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path / "a")
    (path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        model_fingerprint(path)
    (path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json"):
        model_fingerprint(path)

"""What two model folders must have in common for ids and adapters of one to mean the same to the other.

Invariant: only what decides the meaning of an id or the shape of a weight counts. How a version of a library
spells the rotary base or the dtype does not, so a folder and its own export have one fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from cluster.wire import ModelFingerprint
from mlx_sumrl.errors import UserError

SHAPE_KEYS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
    # lfm2: which blocks are convolutions, and how wide they are
    "conv_L_cache",
    "block_dim",
    "block_ff_dim",
    "full_attn_idxs",
)
"""Keys of config.json that bear on a weight's shape. A key that is missing is not the same as one that is null or 0,
but null is as good as missing: exports write it out."""


def model_fingerprint(folder: Path) -> ModelFingerprint:
    """Of a model folder: its config.json's shape and its tokenizer.json's bytes.

    Raises `UserError` where one of the two is missing or the config is not a JSON object.
    """
    return ModelFingerprint(config=config_fingerprint(folder), tokenizer=_tokenizer_fingerprint(folder))


def config_fingerprint(folder: Path) -> str:
    """sha256 of the canonical JSON of `SHAPE_KEYS` in config.json."""
    path = folder / "config.json"
    try:
        config: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a whole model folder") from None
    except ValueError:
        raise UserError(f"{path} is not JSON; name a whole model folder") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds a {type(config).__name__}, not an object; name a whole model folder")
    shape = {key: config[key] for key in SHAPE_KEYS if config.get(key) is not None}
    # Hugging Face's configs leave out what equals the class's default, and False is that of a tied head for most.
    shape["tie_word_embeddings"] = bool(shape.get("tie_word_embeddings", False))
    heads, width = shape.get("num_attention_heads"), shape.get("hidden_size")
    if isinstance(heads, int) and isinstance(width, int) and heads > 0:
        shape.setdefault("head_dim", width // heads)
        shape.setdefault("num_key_value_heads", heads)
    text = json.dumps(shape, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _tokenizer_fingerprint(folder: Path) -> str:
    path = folder / "tokenizer.json"
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a whole model folder") from None

"""Models of real shapes with random bfloat16 weights: for memory it counts how large they are, not what they know.

Never imports mlx by itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SHARD = 64 * 2**20
"""Bytes of weights written at once, so that a model as large as memory could be made."""
SIZE = 0.02
"""Standard deviation of a random weight."""
TOKENIZER = 300
"""Tokens that the tokenizer knows; prompts are given as ids, and no text is made of completions."""
LFM2_ATTENTION = (2, 5, 8, 10, 12, 14)

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151_936,
        "torch_dtype": "bfloat16",
    },
    "lfm2-350m": {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "hidden_size": 1024,
        "block_dim": 1024,
        "block_ff_dim": 6656,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
        "conv_L_cache": 3,
        "conv_bias": False,
        "num_hidden_layers": 16,
        "full_attn_idxs": list(LFM2_ATTENTION),
        "layer_types": ["full_attention" if i in LFM2_ATTENTION else "conv" for i in range(16)],
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "max_position_embeddings": 128_000,
        "norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
        "vocab_size": 65_536,
        "torch_dtype": "bfloat16",
    },
    "toy": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 512,
        "torch_dtype": "bfloat16",
    },
}
"""Content of each shape's config.json, as its makers published it."""


def make_shape(folder: Path, shape: str, seed: int = 0) -> Path:
    """Write a model of this shape, a shard at a time: never more than one of them, or one matrix, is in memory."""
    import mlx.core as mx

    from mlx_sumrl.policy import mlx_internals
    from mlx_sumrl.policy.tiny import train_tokenizer

    tokenizer = train_tokenizer(["no text"], TOKENIZER)
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    config = SHAPES[shape] | {"eos_token_id": tokenizer.eos_token_id}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    # Its own first weights are never computed: only their names and shapes are asked for.
    names = mlx_internals.named_arrays(mlx_internals.new_model(config).parameters())
    mx.random.seed(seed)
    shard: dict[str, mx.array] = {}
    written = 0

    def flush() -> None:
        nonlocal written
        written += 1
        mx.save_safetensors(
            str(folder / f"model-{written:05d}.safetensors"), shard, metadata={"format": "pt"}
        )
        shard.clear()
        mx.clear_cache()

    for name, array in names.items():
        shard[name] = _first_values(name, array.shape)
        mx.eval(shard[name])
        if sum(kept.nbytes for kept in shard.values()) >= SHARD:
            flush()
    if shard:
        flush()
    return folder


def _first_values(name: str, shape: tuple[int, ...]) -> Any:
    import mlx.core as mx

    if name.endswith("norm.weight"):
        return mx.ones(shape, dtype=mx.bfloat16)
    if name.endswith(".bias"):
        return mx.zeros(shape, dtype=mx.bfloat16)
    return mx.random.normal(shape, dtype=mx.bfloat16, scale=SIZE)

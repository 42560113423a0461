"""Tiny random models of every family, written as real model folders, for tests to load.

The files are laid out as Hugging Face has them (lfm2's convolutions are [C, 1, K] there). Every weight is random,
norms and biases too, so that one that is dropped or swapped shows in the logits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from safetensors.numpy import save_file

from mlx_sumrl.data.example import Example
from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.policy.tiny import train_tokenizer

SHARED_MODELS = Path(__file__).parents[1].parent / "shared" / "models"
REFERENCE_MODELS = ("summarizer-5m", "stories260K")

TEXTS = (
    "The meeting starts at nine and the train leaves at ten past eight.",
    "Anna: Are you coming? Ben: Yes, I am coming with the others at noon.",
    "Summarize the conversation. Summarize the post. Summarize the article.",
)
VOCABULARY = 300
D, F, HEADS, KV_HEADS, LAYERS, KERNEL = 32, 48, 4, 2, 3, 3
QWEN3_HEAD = 12  # not D / HEADS: qwen3 has a head size of its own

FAMILIES = ("qwen2", "qwen2-untied", "qwen3", "llama", "llama-untied", "phi3", "lfm2")
"""phi3 is always untied here, qwen3 and lfm2 tied."""

Shape = tuple[str, int, int]
"""(name inside the block, inputs, outputs) of a linear layer."""


@cache
def tokenizer() -> Any:
    """One tokenizer for all; 0, 1 and 2 are its special tokens, 2 ends a turn."""
    return train_tokenizer(TEXTS, VOCABULARY)


def family_config(name: str) -> dict[str, Any]:
    """config.json of a tiny model as Hugging Face would write it."""
    family, _, head = name.partition("-")
    config: dict[str, Any] = {
        "model_type": family,
        "hidden_size": D,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 128,
        "vocab_size": len(tokenizer()),
        "eos_token_id": 2,
        "rope_theta": 10000.0,
        "torch_dtype": "float32",
    }
    if family == "lfm2":
        return config | {
            "architectures": ["Lfm2ForCausalLM"],
            "norm_eps": 1e-5,
            "conv_bias": False,
            "conv_L_cache": KERNEL,
            "block_dim": D,
            "block_ff_dim": F,
            "block_multiple_of": 8,
            "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": False,
            "layer_types": ["conv", "full_attention", "conv"],
            "tie_embedding": True,
        }
    config |= {
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "intermediate_size": F,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": family != "phi3" and head != "untied",
    }
    if family == "qwen3":
        config["head_dim"] = QWEN3_HEAD
    return config


def linear_shapes(config: dict[str, Any]) -> list[list[Shape]]:
    """The linear layers of each block, counted by hand from the papers' architectures."""
    family = config["model_type"]
    head = config.get("head_dim", D // HEADS)
    q, kv = HEADS * head, KV_HEADS * head
    separate = [("self_attn.q_proj", D, q), ("self_attn.k_proj", D, kv), ("self_attn.v_proj", D, kv)]
    swiglu = [("mlp.gate_proj", D, F), ("mlp.up_proj", D, F), ("mlp.down_proj", F, D)]
    if family == "phi3":
        block = [("self_attn.qkv_proj", D, q + 2 * kv), ("self_attn.o_proj", q, D)]
        return [[*block, ("mlp.gate_up_proj", D, 2 * F), ("mlp.down_proj", F, D)]] * LAYERS
    if family == "lfm2":
        feed = [("feed_forward.w1", D, F), ("feed_forward.w3", D, F), ("feed_forward.w2", F, D)]
        attention = [*separate, ("self_attn.out_proj", q, D), *feed]
        convolution = [("conv.in_proj", D, 3 * D), ("conv.out_proj", D, D), *feed]
        return [attention if kind == "full_attention" else convolution for kind in config["layer_types"]]
    return [[*separate, ("self_attn.o_proj", q, D), *swiglu]] * LAYERS


def parameter_count(config: dict[str, Any]) -> int:
    """All parameters of a tiny model, by hand."""
    family = config["model_type"]
    head = config.get("head_dim", D // HEADS)
    total = config["vocab_size"] * D + D  # embeddings, last norm
    if not config.get("tie_word_embeddings", True):
        total += config["vocab_size"] * D
    for index, block in enumerate(linear_shapes(config)):
        total += sum(inputs * outputs for _, inputs, outputs in block) + 2 * D
        if family == "qwen2":
            total += (HEADS + 2 * KV_HEADS) * head  # biases of queries, keys and values
        if family == "qwen3" or (family == "lfm2" and config["layer_types"][index] == "full_attention"):
            total += 2 * head  # norms of queries and keys
        if family == "lfm2" and config["layer_types"][index] == "conv":
            total += D * KERNEL
    return total


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights by name in the layout of Hugging Face, all random, for logits of size about 2."""
    generator = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    for name, array in tree_flatten(mlx_internals.new_model(config).parameters()):
        shape = tuple(array.shape)
        if name.endswith("conv.conv.weight"):
            channels, kernel, one = shape
            shape = (channels, one, kernel)
        if "norm" in name:
            values = 1 + 0.2 * generator.standard_normal(shape)
        elif name.endswith("bias"):
            values = 0.2 * generator.standard_normal(shape)
        elif name.endswith("conv.conv.weight"):
            values = generator.standard_normal(shape) / math.sqrt(KERNEL)
        elif "embed_tokens" in name or "lm_head" in name:
            values = generator.standard_normal(shape) * 2 / math.sqrt(D)
        else:
            values = generator.standard_normal(shape) / math.sqrt(shape[-1])
        weights[name] = values.astype(np.float32)
    return weights


def write_model(folder: Path, name: str, seed: int = 0, **changes: Any) -> Path:
    """A whole model folder of a family; ``changes`` go into its config.json, None takes a key out."""
    folder.mkdir(parents=True)
    config = family_config(name)
    save_file(random_weights(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    write_config(folder, config, **changes)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "pad_token_id": 0}))
    tokenizer().save_pretrained(folder)
    return folder


def write_config(folder: Path, config: dict[str, Any], **changes: Any) -> None:
    """config.json from ``config`` with ``changes``; None takes a key out."""
    changed = {key: value for key, value in (config | changes).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(changed, indent=2))


def example(*prompt_ids: int, id: str = "") -> Example:
    """A prompt as the sampler sees it; the rest of an example does not matter to it."""
    return Example(id=id or str(prompt_ids), prompt_ids=prompt_ids, prompt="", document="", reference="")


def random_prompts(lengths: Sequence[int], seed: int = 0) -> list[Example]:
    """Prompts of random ordinary tokens."""
    generator = np.random.default_rng(seed)
    return [example(*generator.integers(3, len(tokenizer()), size=n).tolist()) for n in lengths]


def randomize_adapters(policy: Policy, seed: int = 0) -> None:
    """Adapter weights that change the model a lot: a fresh ``lora_b`` is zero and shows nothing."""
    generator = np.random.default_rng(seed)
    weights = {}
    for name, array in policy.weights().items():
        noise = generator.standard_normal(array.shape).astype(np.float32)
        if name.endswith(".m"):
            weights[name] = array * mx.array(1 + 0.2 * noise)
        else:
            weights[name] = mx.array(0.15 * noise).astype(array.dtype)
    policy.set_weights(weights)


def full_logits(policy: Policy, token_ids: Sequence[int]) -> np.ndarray:
    """Logits [L, V] of one row by itself, by the model as mlx-lm calls it, in float64."""
    policy.model.eval()
    logits = policy.model(mx.array([[int(token) for token in token_ids]]))[0].astype(mx.float32)
    return np.array(logits, dtype=np.float64)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """In numpy's float64."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def sampling_logprobs(logits: np.ndarray, temperature: float, top_p: float, top_k: int) -> np.ndarray:
    """Log-probabilities [V] of Hugging Face's and vLLM's sampler, from one row of logits, in float64.

    As their code has it: divide by the temperature; drop what is below the k-th largest; sort ascending, drop the
    tokens whose running sum does not exceed 1 - top_p, never the last.
    """
    logits = np.asarray(logits, dtype=np.float64) / temperature
    if top_k > 0:
        logits = np.where(logits < np.sort(logits)[-top_k], -np.inf, logits)
    if top_p < 1:
        order = np.argsort(logits)
        dropped = np.cumsum(np.exp(log_softmax(logits)[order])) <= 1 - top_p
        dropped[-1] = False
        logits = logits.copy()
        logits[order[dropped]] = -np.inf
    return log_softmax(logits)


def completion_truth(
    policy: Policy,
    prompt: Sequence[int],
    completion: Sequence[int],
    *,
    temperature: float,
    top_p: float,
    top_k: int,
) -> np.ndarray:
    """Log-probability of each token of one completion, one row at a time, filters in numpy."""
    logits = full_logits(policy, [*prompt, *completion])[len(prompt) - 1 : -1]
    rows = [sampling_logprobs(row, temperature, top_p, top_k) for row in logits]
    return np.array([row[token] for row, token in zip(rows, completion, strict=True)])

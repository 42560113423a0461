"""Whether a run will fit, before it begins: an estimate of the peak memory of a training step.

Pure arithmetic on the model's shape. Weights, gradients, moments and caches are counted; activations follow a
formula whose factors were fitted to measured peaks (see the constants), good to about a fifth. Never imports
mlx.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import psutil

from mlx_sumrl.config import REFERENCE_BITS, ReferenceKind
from mlx_sumrl.reporting.model_shape import ModelShape

GIB = 2**30
"""A machine sold with 16 GB has 16 of these."""
BYTES = {"float32": 4, "bfloat16": 2}
USABLE_SHARE = 0.75
"""Of a machine's memory; about what macOS lets the GPU have."""

# Fitted to peaks of value_and_grad with mlx 0.32.4 on qwen2 shapes (hidden 256; 4 and 8 layers, 8 and 16
# rows, 164 and 364 tokens, intermediate 768 and 1536, float32 and bfloat16).
MLP_COPIES = 5
"""Arrays of the MLP's inner size kept for the backward pass, per token and block."""
HIDDEN_COPIES = 3
SCORE_COPIES = 1.6
"""Attention scores kept, heads x tokens; float32 whatever the weights are."""
CONV_COPIES = 7
BLOCKS_IN_FLIGHT = 1.5
"""What the backward pass of a block needs beside what all blocks keep, in blocks."""
BLOCKS_RECOMPUTED = 3.3
"""The same with gradient checkpointing, where a block keeps only its input."""
LOGIT_COPIES = 2
UPDATE_COPIES = 2
"""Of the trained weights, beside gradients and moments, while the optimiser steps: the clipped gradients and
the new weights before the old ones go."""
UPDATE_TEMPORARIES = 12
"""float32 arrays as large as the slice of a weight that is updated at once; measured, as the next."""
MOST_TEMPORARIES = 22
"""The same with compensation, 8-bit moments or Muon."""
UPDATE_SLICE = 1 << 20
"""Elements of such a slice; see `mlx_sumrl.training.moments`."""
MOMENT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "blocks8": 1 + 4 / 128}
"""Of one moment of one weight; a block of 128 codes has a float32 scale."""
GROUP_SIZE = 64
"""Weights of a quantised reference that share a scale and a bias; see `mlx_sumrl.policy.reference`."""
FEWER_BITS: dict[ReferenceKind | None, ReferenceKind] = {"copy": "8bit", "8bit": "4bit"}
"""The next smaller way to keep a reference."""
MOMENTS = {"adamw": 2, "lion": 1, "adafactor": 0, "muon": 1}
"""Per weight, by optimiser. Adafactor keeps one number per row and column, Muon two moments for embedding and
head."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of each part; they are not all alive at once, see `total`."""

    weights: int
    """The model, its adapters, and what a reference beside it takes."""
    moments: int
    """What the optimiser keeps, a compensation counted."""
    gradients: int
    activations: int
    logits: int
    """Of one chunk of the head in training."""
    update: int
    """While the optimiser steps."""
    kv_cache: int
    sampler_logits: int
    ways_out: tuple[str, ...] = ()
    """Options that would make it smaller."""

    @property
    def total(self) -> int:
        """The peak: what stays, and the largest of backward pass, optimiser step and sampling."""
        backward = self.gradients + self.activations + self.logits
        step = self.gradients + self.update
        return self.weights + self.moments + max(backward, step, self.kv_cache + self.sampler_logits)


def estimate_peak(
    shape: ModelShape,
    *,
    tuning: Literal["full", "lora", "dora"],
    dtype: Literal["float32", "bfloat16"],
    prompt_tokens: int,
    completion_tokens: int,
    micro_batch_rows: int,
    gradient_checkpointing: bool = False,
    sampler_rows: int = 0,
    reference: ReferenceKind | None = None,
    micro_batches: int = 1,
    shared_prompt: bool = False,
    lora_rank: int = 8,
    lora_layers: int = -1,
    head_tokens: int = 512,
    optimizer: Literal["adamw", "lion", "adafactor", "muon"] = "adamw",
    moments: Literal["float32", "bfloat16", "blocks8"] = "float32",
    compensated: bool = False,
) -> MemoryEstimate:
    """Peak memory of a step of GRPO, or of supervised training (``sampler_rows=0``).

    ``micro_batches`` of ``micro_batch_rows`` rows make a step; with more than one, gradients are added up in
    float32. ``shared_prompt``: the rows of a micro-batch have one prompt, computed once. ``head_tokens``
    completion tokens have logits at once. ``reference`` (KL to a reference, kept so) costs memory with full tuning
    only. ``optimizer`` keeps its ``moments`` as given; ``compensated`` rounding costs 2 bytes for each
    trained bfloat16 weight.
    """
    size = BYTES[dtype]
    weights = _weight_bytes(shape, size)
    if tuning == "full":
        trained, trained_size = shape.parameters, size
        hidden_matrix = shape.hidden * shape.intermediate * (2 if shape.fused else 1)
        largest = max(shape.vocab * shape.hidden, hidden_matrix)
        if reference == "copy":
            weights *= 2
        elif reference is not None:
            weights += _quantized_bytes(shape, REFERENCE_BITS[reference], GROUP_SIZE, size, scale_size=size)
    else:
        # mlx-lm makes adapters in float32.
        trained, trained_size = shape.adapter_parameters(lora_rank, lora_layers, dora=tuning == "dora"), 4
        largest = lora_rank * max(max(matrix) for matrix in shape.block_matrices(attention=True))
        hidden_matrix = largest
        weights += trained * trained_size

    # A shared prompt's keys and values are still laid out for every row, hence the score and cache terms stay.
    tokens = (1 if shared_prompt else micro_batch_rows) * prompt_tokens + micro_batch_rows * completion_tokens
    per_block = _block_bytes(shape, tokens, prompt_tokens + completion_tokens, size)
    if gradient_checkpointing:
        blocks = min(BLOCKS_RECOMPUTED, shape.layers + BLOCKS_IN_FLIGHT)
        activations = blocks * per_block + shape.layers * tokens * shape.hidden * size
    else:
        activations = (shape.layers + BLOCKS_IN_FLIGHT) * per_block

    cached = sampler_rows * (prompt_tokens + completion_tokens) * shape.kv_heads * shape.head_dim
    chunk = min(head_tokens, micro_batch_rows * completion_tokens)
    accumulated = trained * 4 if micro_batches > 1 else 0
    kept = _optimizer_bytes(shape, trained, tuning, optimizer, moments)
    kept += 2 * trained if compensated and trained_size == 2 else 0
    # Muon takes a matrix whole, though never an embedding.
    at_once = hidden_matrix if optimizer == "muon" else min(largest, UPDATE_SLICE)
    plain = not compensated and moments != "blocks8" and optimizer != "muon"
    temporaries = (UPDATE_TEMPORARIES if plain else MOST_TEMPORARIES) * at_once * 4
    return MemoryEstimate(
        weights=weights,
        moments=kept,
        gradients=trained * trained_size + accumulated,
        activations=round(activations),
        logits=LOGIT_COPIES * chunk * shape.vocab * 4,
        update=UPDATE_COPIES * trained * trained_size + temporaries,
        kv_cache=2 * cached * shape.attention_layers * size,
        sampler_logits=LOGIT_COPIES * sampler_rows * shape.vocab * 4,
        ways_out=_ways_out(
            tuning, dtype, micro_batch_rows, gradient_checkpointing, sampler_rows, moments, reference
        ),
    )


def machine_memory() -> int:
    """Bytes of memory of this machine."""
    return int(psutil.virtual_memory().total)


def describe(estimate: MemoryEstimate, machine_bytes: int, working_set: int | None = None) -> str:
    """One sentence: the peak and what there is, and, where it will hardly fit, what to do.

    ``working_set`` is the memory that the device recommends to stay below (Metal's
    ``max_recommended_working_set_size``); three quarters of the machine otherwise.
    """
    sentence = f"estimated peak {estimate.total / GIB:.1f} GB of {machine_bytes / GIB:.1f} GB"
    if fits(estimate, machine_bytes, working_set):
        return sentence
    limit = working_set or USABLE_SHARE * machine_bytes
    way_out = f"try {', '.join(estimate.ways_out)}" if estimate.ways_out else "take a smaller model"
    return f"{sentence}, more than the {limit / GIB:.1f} GB that can be used: {way_out}"


def fits(estimate: MemoryEstimate, machine_bytes: int, working_set: int | None = None) -> bool:
    """Whether the peak stays below the working set, or three quarters of the machine."""
    return estimate.total <= (working_set or USABLE_SHARE * machine_bytes)


def _weight_bytes(shape: ModelShape, size: int) -> int:
    if shape.quantization is None:
        return shape.parameters * size
    bits, group = shape.quantization
    return _quantized_bytes(shape, bits, group, size, scale_size=2)


def _quantized_bytes(shape: ModelShape, bits: int, group: int, size: int, scale_size: int) -> int:
    # A scale and a bias for each group.
    matrices = shape.matrix_parameters * bits // 8 + shape.matrix_parameters // group * 2 * scale_size
    return matrices + (shape.parameters - shape.matrix_parameters) * size


def _optimizer_bytes(shape: ModelShape, trained: int, tuning: str, optimizer: str, moments: str) -> int:
    """State of the optimiser for ``trained`` weights."""
    if optimizer == "adafactor":
        # Rows and columns of a matrix over its elements: about two over the narrower side of a block's.
        return 2 * 4 * trained // shape.hidden if tuning == "full" else 4 * trained
    count = MOMENTS[optimizer] * trained
    if optimizer == "muon" and tuning == "full":
        count += shape.vocab * shape.hidden * (1 if shape.tied else 2)
    return round(MOMENT_BYTES[moments] * count)


def _block_bytes(shape: ModelShape, tokens: int, length: int, size: int) -> float:
    """What one block keeps for its backward pass, on average over attention and convolution blocks."""
    keys = 2 * shape.kv_heads * shape.head_dim
    attention = keys * size + SCORE_COPIES * shape.heads * length * 4
    convolution = CONV_COPIES * shape.hidden * size
    mixed = (shape.attention_layers * attention + shape.conv_layers * convolution) / shape.layers
    return tokens * (mixed + (MLP_COPIES * shape.intermediate + HIDDEN_COPIES * shape.hidden) * size)


def _ways_out(
    tuning: str,
    dtype: str,
    micro_batch_rows: int,
    gradient_checkpointing: bool,
    sampler_rows: int,
    moments: str,
    reference: ReferenceKind | None,
) -> tuple[str, ...]:
    ways = []
    if micro_batch_rows > 1:
        ways.append("grpo.micro_batch_tokens lower")
    if not gradient_checkpointing:
        ways.append("policy.gradient_checkpointing true")
    if tuning == "full":
        ways.append("policy.tuning lora")
        if moments == "float32":
            ways.append("optimizer.moments blocks8")
        if reference in FEWER_BITS:
            ways.append(f"grpo.reference {FEWER_BITS[reference]}")
    if dtype == "float32":
        ways.append("policy.dtype bfloat16")
    if sampler_rows > 8:
        ways.append(f"sampling.max_rows {sampler_rows // 2}")
    return tuple(ways)

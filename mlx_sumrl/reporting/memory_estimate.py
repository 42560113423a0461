"""Whether a run will fit, before it begins: an estimate of the peak memory of a training step.

Pure arithmetic on the model's shape and the run's options. Weights, gradients, moments and caches are counted;
what lives while a block or the head is computed follows formulas whose factors were fitted to measured peaks (see
`mlx_sumrl.reporting.activation_estimate`). Never imports mlx.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

import psutil

from mlx_sumrl.config import REFERENCE_BITS, ReferenceKind
from mlx_sumrl.reporting.activation_estimate import Block, Head, Layout, Segment
from mlx_sumrl.reporting.model_shape import ModelShape

GIB = 2**30
"""A machine sold with 16 GB has 16 of these."""
BYTES = {"float32": 4, "bfloat16": 2}
USABLE_SHARE = 0.75
"""Of a machine's memory; about what macOS lets the GPU have."""

SAMPLER_COPIES = 9
"""Of the logits, while tokens are drawn."""
CACHE_STEP = 256
"""Tokens by which mlx-lm's cache of a prompt grows."""
PREFILL = 256
"""Tokens of a prompt that are read at once; see `mlx_sumrl.rollouts.local`."""
UPDATE_TEMPORARIES = 13
"""float32 arrays as large as the slice of a weight that is updated at once; measured, as the next."""
MOST_TEMPORARIES = 22
"""The same with compensation, 8-bit moments or Muon."""
UPDATE_SLICE = 1 << 18
"""Elements of such a slice; see `mlx_sumrl.training.moments`."""
MOMENT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "blocks8": 1 + 4 / 128}
"""Of one moment of one weight; a block of 128 codes has a float32 scale."""
GROUP_SIZE = 64
"""Weights of a quantised reference, and keys and values of a quantised cache, that share a scale and a bias."""
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
    """Of all trained weights, while the last of them are added up."""
    activations: int
    """What the blocks' backward pass needs beside gradients."""
    head: int
    """All beside weights and moments while the head is differentiated."""
    kept_gradients: int
    """What is left of the gradients for the update."""
    update: int
    """Temporaries while the optimiser steps."""
    kv_cache: int
    sampler: int
    """While a prompt is read or tokens are drawn, and the float32 copy of the head that makes their logits."""
    ways_out: tuple[str, ...] = ()
    """Options that would make it smaller."""

    @property
    def rollout(self) -> int:
        """Peak while completions are sampled."""
        return self.weights + self.moments + self.kv_cache + self.sampler

    @property
    def gradient(self) -> int:
        """Peak while the gradient is computed."""
        return self.weights + self.moments + max(self.gradients + self.activations, self.head)

    @property
    def step(self) -> int:
        """Peak while the optimiser moves the weights."""
        return self.weights + self.moments + self.kept_gradients + self.update

    @property
    def total(self) -> int:
        """The peak of them all."""
        return max(self.rollout, self.gradient, self.step)


def estimate_peak(
    shape: ModelShape,
    *,
    tuning: Literal["full", "lora", "dora"],
    dtype: Literal["float32", "bfloat16"],
    prompt_tokens: int,
    completion_tokens: int,
    prompts_per_step: int,
    group_size: int = 1,
    micro_batch_tokens: int = 4096,
    room: str | None = None,
    logits_mb: int = 32,
    gradient_checkpointing: bool = False,
    share_prompt: bool = True,
    filtered: bool = False,
    max_rows: int = 0,
    cache_bits: Literal[4, 8] | None = None,
    reference: ReferenceKind | None = None,
    lora_rank: int = 8,
    lora_layers: int = -1,
    optimizer: Literal["adamw", "lion", "adafactor", "muon"] = "adamw",
    moments: Literal["float32", "bfloat16", "blocks8"] = "float32",
    compensated: bool = False,
) -> MemoryEstimate:
    """Peak memory of a step of GRPO; of supervised training with ``group_size`` and ``max_rows`` left as they are.

    All prompts and completions are taken to be as long as ``prompt_tokens`` and ``completion_tokens``. ``max_rows``
    completions are sampled at once, with keys and values in ``cache_bits``. ``filtered``: with ``top_p`` or
    ``top_k``. ``room`` is where ``micro_batch_tokens`` is set, where that is neither `grpo` nor, with ``group_size`` 1,
    `sft`. ``reference`` (KL to a reference, kept so) costs memory with full tuning only. ``optimizer`` keeps its
    ``moments`` as given; ``compensated`` rounding costs 2 bytes for each trained bfloat16 weight. The other options are
    those of the same name.
    """
    size = BYTES[dtype]
    weights = _weight_bytes(shape, size)
    if tuning == "full":
        trained, trained_size = shape.parameters, size
        hidden_matrix = shape.hidden * shape.intermediate * (2 if shape.fused else 1)
        largest = max(shape.vocab * shape.hidden, hidden_matrix)
        of_blocks = shape.parameters - _head_parameters(shape)
        if reference == "copy":
            weights *= 2
        elif reference is not None:
            weights += _quantized_bytes(shape, REFERENCE_BITS[reference], GROUP_SIZE, size)
    else:
        # mlx-lm makes adapters in float32.
        trained, trained_size = shape.adapter_parameters(lora_rank, lora_layers, dora=tuning == "dora"), 4
        largest = lora_rank * max(max(matrix) for matrix in shape.block_matrices(attention=True))
        hidden_matrix, of_blocks = largest, trained
        weights += trained * trained_size

    layout = Layout.of(
        prompt_tokens,
        completion_tokens,
        prompts_per_step,
        group_size,
        micro_batch_tokens,
        share_prompt,
        in_pieces=gradient_checkpointing,
    )
    block = Block(shape, size, adapters=tuning != "full")
    head = Head(shape, logits_mb * 1_000_000, trained=tuning == "full", filtered=filtered)
    smaller_head = replace(head, budget=head.budget // 4)
    own_head = shape.vocab * shape.hidden * size if tuning == "full" else 0
    if gradient_checkpointing:
        # What every block read, of all micro-batches, and the cotangents that take its place.
        read = (shape.layers + 1) * layout.positions * shape.hidden * size
        gradients = trained * trained_size
        # A block's gradients are added up in float32, and again before they are rounded.
        adding = of_blocks / shape.layers * 4 * (1 if trained_size == 4 else 2)
        forward = max(block.forward_temporaries(segment) for segment in layout.segments)
        backward = max(block.kept(segment) + block.temporaries(segment) for segment in layout.segments)
        activations = read + max(forward, backward + adding)
        head_tokens = layout.completion_tokens
        of_head = read + own_head + head.bytes(head_tokens)
        kept_gradients = gradients
    else:
        kept = shape.layers * sum(block.kept(segment) for segment in layout.segments)
        # Each group's gradient is a whole one until the groups of a micro-batch are added up; several micro-batches
        # are added up in float32, old and new side by side.
        gradients = trained * trained_size * layout.groups
        kept_gradients = trained * trained_size
        if layout.micro_batches > 1:
            gradients, kept_gradients = trained * 4 + max(gradients, trained * 4), trained * 4
        activations = kept + max(block.temporaries(segment) for segment in layout.segments)
        # Tiles of the head's gradient are put together twice where MLX schedules them.
        head_tokens = layout.micro_batch_completion_tokens
        of_head = kept + 3 * own_head + head.bytes(head_tokens)

    smaller_helps = of_head > gradients + activations and smaller_head.bytes(head_tokens) < head.bytes(
        head_tokens
    )

    kept_moments = _optimizer_bytes(shape, trained, tuning, optimizer, moments)
    kept_moments += 2 * trained if compensated and trained_size == 2 else 0
    # Muon takes a matrix whole, though never an embedding.
    at_once = hidden_matrix if optimizer == "muon" else min(largest, UPDATE_SLICE)
    plain = not compensated and moments != "blocks8" and optimizer != "muon"
    temporaries = (UPDATE_TEMPORARIES if plain else MOST_TEMPORARIES) * at_once * 4

    rows = min(max_rows, prompts_per_step * group_size)
    prompts = ceil(rows / group_size) * ceil(prompt_tokens / CACHE_STEP) * CACHE_STEP * size
    caches = (
        rows
        * (prompt_tokens + completion_tokens)
        * (size if cache_bits is None else cache_bits / 8 + 2 * size / GROUP_SIZE)
    )
    # One layer's are copied while they are multiplied with.
    caches = prompts * shape.attention_layers + caches * (shape.attention_layers + 1)
    at_first = min(prompt_tokens, PREFILL)
    prefill = block.temporaries(Segment(1, at_first, before=prompt_tokens - at_first)) if rows else 0
    widened = shape.vocab * shape.hidden * 4 if rows and size < 4 and shape.quantization is None else 0
    return MemoryEstimate(
        weights=weights,
        moments=kept_moments,
        gradients=gradients,
        activations=round(activations),
        head=round(of_head),
        kept_gradients=kept_gradients,
        update=temporaries,
        kv_cache=round(2 * shape.kv_heads * shape.head_dim * caches),
        sampler=round(max(SAMPLER_COPIES * rows * shape.vocab * 4, prefill)) + widened,
        ways_out=_ways_out(
            tuning=tuning,
            dtype=dtype,
            room=room or ("grpo" if group_size > 1 else "sft"),
            micro_batch_tokens=micro_batch_tokens,
            longest=prompt_tokens + completion_tokens,
            logits_mb=logits_mb // 4 if smaller_helps else 0,
            gradient_checkpointing=gradient_checkpointing,
            rows=rows,
            cache_bits=cache_bits,
            moments=moments,
            reference=reference,
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
    return _quantized_bytes(shape, bits, group, size)


def _quantized_bytes(shape: ModelShape, bits: int, group: int, size: int) -> int:
    # A scale and a bias for each group, in the type of the weights that are not packed.
    packed = shape.packable_parameters(group)
    return packed * bits // 8 + packed // group * 2 * size + (shape.parameters - packed) * size


def _optimizer_bytes(shape: ModelShape, trained: int, tuning: str, optimizer: str, moments: str) -> int:
    """State of the optimiser for ``trained`` weights."""
    if optimizer == "adafactor":
        # Rows and columns of a matrix over its elements: about two over the narrower side of a block's.
        return 2 * 4 * trained // shape.hidden if tuning == "full" else 4 * trained
    count = MOMENTS[optimizer] * trained
    if optimizer == "muon" and tuning == "full":
        count += _head_parameters(shape)
    return round(MOMENT_BYTES[moments] * count)


def _head_parameters(shape: ModelShape) -> int:
    return shape.vocab * shape.hidden * (1 if shape.tied else 2)


def _ways_out(
    *,
    tuning: str,
    dtype: str,
    room: str,
    micro_batch_tokens: int,
    longest: int,
    logits_mb: int,
    gradient_checkpointing: bool,
    rows: int,
    cache_bits: int | None,
    moments: str,
    reference: ReferenceKind | None,
) -> tuple[str, ...]:
    ways = []
    if not gradient_checkpointing:
        ways.append("policy.gradient_checkpointing true")
    if micro_batch_tokens > longest:  # fewer than a row's would change nothing
        ways.append(f"{room}.micro_batch_tokens {max(micro_batch_tokens // 2, longest)}")
    if tuning == "full":
        ways.append("policy.tuning lora")
        if moments == "float32":
            ways.append("optimizer.moments blocks8")
        if reference in FEWER_BITS:
            ways.append(f"grpo.reference {FEWER_BITS[reference]}")
    if dtype == "float32":
        ways.append("policy.dtype bfloat16")
    if logits_mb:
        ways.append(f"policy.logits_mb {logits_mb}")
    if rows > 8:
        ways.append(f"sampling.max_rows {rows // 2}")
        if cache_bits is None:
            ways.append("sampling.cache_bits 8")
    return tuple(ways)

"""The model as what it is in the backward pass: an embedding, blocks one after the other, a norm.

A state is one array [B, L, D] for each segment of `PackedRows`. Within a block a prompt runs first and its keys
and values (or its convolution state) are left in the graph for the segments that follow it, so gradients flow
back through them exactly. The same goes for the pieces of a long row.

Causal attention and causal convolutions never look to the right, so padding there needs no mask.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_sumrl.errors import UserError
from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.attention import causal_attention
from mlx_sumrl.policy.exponential import on_cpu, swiglu
from mlx_sumrl.policy.head import HeadOptions, token_logprobs
from mlx_sumrl.policy.packing import PackedRows, Segment, pack
from mlx_sumrl.policy.prefix_cache import PrefixCache, PrefixState

State = list[mx.array]


def check_blocks(model: nn.Module, source: str) -> None:
    """Make sure that going block by block is what the model does, whatever else its family does between them.

    Raises `UserError` naming ``source`` for a model that scales its embeddings, has sliding windows, or looks its
    attention up by another name: it would be trained as a model that it is not.
    """
    prompt, completions = (0, 1, 2), ((3, 4, 5), (6, 7))
    rows = pack([(prompt, completion) for completion in completions], share_prompt=True)
    try:
        mlx_internals.prompt_cache(model)
    except UserError as sliding:
        raise UserError(f"{source}: {sliding}") from sliding
    try:
        state = embedded(model, rows)
        for layer in model.layers:
            state = after_block(layer, state, rows)
        found_ND = predicting(model, state, rows).astype(mx.float32)
        whole = [
            mlx_internals.backbone(model, mx.array([[*prompt, *completion]]))[0, len(prompt) - 1 : -1]
            for completion in completions
        ]
        whole_ND = mx.concatenate(whole).astype(mx.float32)
        agrees = bool(mx.all(mx.abs(found_ND - whole_ND) <= 0.05 * (1 + mx.abs(whole_ND).max())).item())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{source}: this model family is not supported ({error}); tested families: {mlx_internals.FAMILIES}"
        ) from error
    if not agrees:
        raise UserError(
            f"{source}: this model family does more than its embedding, its blocks and a norm (scaled embeddings, "
            f"perhaps) and is not supported; tested families: {mlx_internals.FAMILIES}"
        )


def embedded(model: nn.Module, rows: PackedRows) -> State:
    """What the first block reads."""
    return [model.model.embed_tokens(segment.tokens_BL) for segment in rows.segments]


def after_block(layer: Any, state: State, rows: PackedRows) -> State:
    """What the next block reads."""
    following: State = []
    recorded: dict[int, list[mx.array]] = {}
    for place, (segment, hidden_BLD) in enumerate(zip(rows.segments, state, strict=True)):
        before = [] if segment.after is None else recorded[segment.after]
        hidden_BLD, recorded[place] = after_segment(layer, hidden_BLD, segment, before)
        following.append(hidden_BLD)
    return following


def after_segment(
    layer: Any, hidden_BLD: mx.array, segment: Segment, before: list[mx.array]
) -> tuple[mx.array, list[mx.array]]:
    """One segment through a block, and what segments that follow it need: keys and values, or a state.

    ``before`` is what the segment that this one follows has left, nothing where it follows none.
    """
    attends = getattr(layer, "is_attention_layer", True)
    cache: PrefixCache | PrefixState | None = None
    if segment.followed or before:
        kind: Any = PrefixCache if attends else PrefixState
        cache = kind(before, hidden_BLD.shape[0])
    with mlx_internals.computing_by(layer, _attend, swiglu if on_cpu() else None):
        hidden_BLD = layer(hidden_BLD, "causal" if attends else None, cache=cache)
    return hidden_BLD, cache.left() if cache is not None and segment.followed else []


def _attend(
    queries: mx.array, keys: mx.array, values: mx.array, cache: Any, scale: float, mask: Any
) -> mx.array:
    return causal_attention(queries, keys, values, scale, None if cache is None else cache.before)


def predicting(model: nn.Module, state: State, rows: PackedRows) -> mx.array:
    """Hidden states [N, D], after the last norm, of the tokens before each completion token."""
    inner = model.model
    norm = inner.norm if "norm" in inner else inner.embedding_norm
    flat_ND = mx.concatenate([hidden.reshape(-1, hidden.shape[-1]) for hidden in state])
    result: mx.array = norm(flat_ND[rows.positions_N])
    return result


def packed_logprobs(
    model: nn.Module, rows: PackedRows, options: HeadOptions, differentiable: bool = True
) -> mx.array:
    """log p(token) [B, T] float32 of every completion token under the sampling distribution; 0 at padding.

    Equal to `mlx_sumrl.policy.logprobs.completion_logprobs` up to the order in which floats are added. Not
    ``differentiable``, each block is done with before the next begins, which needs the memory of one.
    """
    state = embedded(model, rows)
    for layer in model.layers:
        state = after_block(layer, state, rows)
        if not differentiable:
            mx.eval(state)
    hidden_ND = predicting(model, state, rows)
    return rows.by_row(token_logprobs(model, hidden_ND, rows.targets_N, options, differentiable))

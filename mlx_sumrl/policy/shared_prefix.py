"""Log-probabilities of a group's completions with their prompt computed once.

The G completions of a group share their prompt, so the plain path reads it G times. Here the prompt runs through
each block once, its keys and values (or convolution state) stay ordinary arrays, and the completions attend to
them; gradients flow back through them exactly. Equal to `mlx_sumrl.policy.logprobs.completion_logprobs` up to the
order in which floats are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.logprobs import token_logprobs


@dataclass(frozen=True)
class GroupBatch:
    """Completions of one prompt."""

    prompt_L: mx.array
    """int32, the prompt's ids."""
    targets_GT: mx.array
    """int32, the completion ids, padded on the right with 0."""
    mask_GT: mx.array
    """float32, 1 at real completion tokens."""


def group_batch(prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> GroupBatch:
    """A batch from a prompt and its completions. Raises ValueError for an empty one."""
    if not prompt or not completions or any(not completion for completion in completions):
        raise ValueError("a group needs a prompt and at least one completion, and none of them may be empty")
    T = max(len(completion) for completion in completions)
    targets = np.zeros((len(completions), T), np.int32)
    mask = np.zeros((len(completions), T), np.float32)
    for row, completion in enumerate(completions):
        targets[row, : len(completion)], mask[row, : len(completion)] = completion, 1
    return GroupBatch(mx.array(np.array(prompt, np.int32)), mx.array(targets), mx.array(mask))


def group_logprobs(
    model: nn.Module,
    batch: GroupBatch,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    checkpointing: bool = False,
) -> mx.array:
    """log p(token) [G, T] float32 of every completion token under the sampling distribution; 0 at padding.

    ``checkpointing`` keeps only each block's inputs for the backward pass.
    """
    G = batch.targets_GT.shape[0]
    # The last token of a completion predicts nothing that is trained, so it is never read.
    prompt_1LD, completions_GTD = mlx_internals.run_group(
        model, batch.prompt_L[None], batch.targets_GT[:, :-1], checkpointing
    )
    first_G1D = mx.broadcast_to(prompt_1LD[:, -1:], (G, 1, prompt_1LD.shape[-1]))
    hidden_GTD = mx.concatenate([first_G1D, completions_GTD], axis=1)
    logprobs_GT = token_logprobs(
        model, hidden_GTD, batch.targets_GT, temperature=temperature, top_p=top_p, top_k=top_k
    )
    return logprobs_GT * batch.mask_GT

"""Log-probabilities of completions under the policy, by teacher forcing: the plain path.

Every row is its own prompt followed by its own completion, padded on the right. Causal attention and causal
convolutions never look to the right, so padding needs no mask. The path that trains (`mlx_sumrl.policy.blocks`)
is tested equal to this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.rollouts.filters import filtered_logits


@dataclass(frozen=True)
class TokenBatch:
    """Rows of prompt and completion ids, ready for the model."""

    tokens_BL: mx.array
    """int32, prompt then completion, padded on the right with 0."""
    positions_BT: mx.array
    """int32, index into L of the token before each completion token: where its logits come from."""
    targets_BT: mx.array
    """int32, the completion ids, padded with 0."""
    mask_BT: mx.array
    """float32, 1 at real completion tokens."""

    @property
    def tokens(self) -> int:
        """How many token positions the model computes, padding counted."""
        return int(self.tokens_BL.size)


def token_batch(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_to: int = 0
) -> TokenBatch:
    """A batch from B prompts and their B completions; ``pad_to`` makes T at least that long.

    Raises ValueError for an empty prompt or completion.
    """
    pairs = list(zip(prompts, completions, strict=True))
    if not pairs or any(not prompt or not completion for prompt, completion in pairs):
        raise ValueError("a batch needs at least one row, and every row a prompt and a completion")
    T = max(pad_to, max(len(completion) for _, completion in pairs))
    L = max(max(len(prompt) + len(completion) for prompt, completion in pairs), 1)
    tokens = np.zeros((len(pairs), L), np.int32)
    targets = np.zeros((len(pairs), T), np.int32)
    positions = np.zeros((len(pairs), T), np.int32)
    mask = np.zeros((len(pairs), T), np.float32)
    for row, (prompt, completion) in enumerate(pairs):
        p, t = len(prompt), len(completion)
        tokens[row, :p], tokens[row, p : p + t] = prompt, completion
        targets[row, :t], mask[row, :t] = completion, 1
        positions[row, :t] = np.arange(p - 1, p - 1 + t)
    return TokenBatch(mx.array(tokens), mx.array(positions), mx.array(targets), mx.array(mask))


def completion_logprobs(
    model: nn.Module, batch: TokenBatch, *, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0
) -> mx.array:
    """log p(token) [B, T] float32 of every completion token under the sampling distribution; 0 at padding.

    With a filter, the token itself always counts as kept, so that a policy that has moved on gives it a finite
    value; a fresh policy gives exactly what the sampler did.
    """
    B, T = batch.targets_BT.shape
    hidden_BLD = mlx_internals.backbone(model, batch.tokens_BL)
    hidden_BTD = mx.take_along_axis(hidden_BLD, batch.positions_BT[..., None], axis=1)
    targets_N = batch.targets_BT.reshape(-1)
    logits_NV = filtered_logits(
        mlx_internals.head(model, hidden_BTD.reshape(B * T, -1)),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        keep=targets_N,
    )
    chosen_N = mx.take_along_axis(logits_NV, targets_N[:, None], axis=-1)[:, 0]
    return (chosen_N - mx.logsumexp(logits_NV, axis=-1)).reshape(B, T) * batch.mask_BT

"""One token for each row, by inverse transform: the random numbers, and what is drawn with them.

Invariant: a token of probability 0 is never drawn, whatever is rounded and however a device adds up.

There is one exp over the vocabulary. ``mx.compile`` of the whole function made it no faster on a CPU (64 x 4,096:
3.1 ms both); it has not been measured on a GPU, so it is not used.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_sumrl.policy.exponential import exp
from mlx_sumrl.rollouts.filters import filtered_logits
from mlx_sumrl.rollouts.types import Sampling

BELOW_ONE = 1 - 2.0**-20
"""Keeps a uniform draw clear of the total after rounding; shifts no probability by more than 1e-6."""
BLOCK = 128
"""Tokens whose weights are added up before they are compared with anything; divides most vocabularies."""


def uniforms(seed: int, place: int, group_size: int, tokens: int) -> np.ndarray:
    """Numbers in [0, 1), float32 [G, T], for the group at ``place``; a larger G or T only adds to them.

    Philox (Salmon et al. 2011) is a function of key and counter: seed and prompt are the key, the completion is
    the counter's top word, its tokens count up below. MLX's generator gives other numbers for another shape.
    """
    rows = [np.random.Philox(key=[seed, place], counter=[0, 0, 0, row]) for row in range(group_size)]
    return np.stack([np.random.Generator(row).random(tokens, dtype=np.float32) for row in rows])


def draw(logits_BV: mx.array, sampling: Sampling, uniforms_B: mx.array) -> tuple[mx.array, mx.array]:
    """Token ids [B] and their log-probabilities [B] under the sampling distribution.

    Inverse transform sampling with one uniform number in [0, 1) a row. At temperature 0 the most likely token,
    with its log-probability at temperature 1.
    """
    logits_BV = filtered_logits(
        logits_BV, temperature=sampling.temperature or 1.0, top_p=sampling.top_p, top_k=sampling.top_k
    )
    shifted_BV = logits_BV - mx.max(logits_BV, axis=-1, keepdims=True)
    # Blocks first: a sum over a whole vocabulary is done in order on a CPU and loses the tail (of 151,936 tokens,
    # 5e-8 each are .75 % in all and would never be drawn; a usual total is off by 3e-5, by blocks 1e-6), and a
    # running one costs more.
    weights_BKN = _in_blocks(exp(shifted_BV))
    sums_BK = weights_BKN.sum(axis=-1)
    ends_BK = mx.cumsum(sums_BK, axis=-1)
    total_B1 = ends_BK[:, -1:]
    if sampling.temperature == 0:
        tokens_B1 = mx.argmax(logits_BV, axis=-1, keepdims=True)
    else:
        targets_B1 = (uniforms_B[:, None] * BELOW_ONE) * total_B1
        block_B1 = _first_above(ends_BK, targets_B1, sums_BK)
        weights_BN = mx.take_along_axis(weights_BKN, block_B1[:, :, None], axis=1)[:, 0]
        within_BN = mx.cumsum(weights_BN, axis=-1)
        # What is left for the block to cover; it was added up in another order, so it may just miss its ends.
        left_B1 = targets_B1 - mx.take_along_axis(ends_BK - sums_BK, block_B1, axis=-1)
        left_B1 = mx.clip(left_B1, 0, within_BN[:, -1:] * BELOW_ONE)
        tokens_B1 = block_B1 * BLOCK + _first_above(within_BN, left_B1, weights_BN)
    logprobs_B1 = mx.take_along_axis(shifted_BV, tokens_B1, axis=-1) - mx.log(total_B1)
    return tokens_B1[:, 0], logprobs_B1[:, 0]


def _in_blocks(weights_BV: mx.array) -> mx.array:
    """The same as [B, K, BLOCK], zeros behind the last where it does not divide."""
    missing = -weights_BV.shape[-1] % BLOCK
    if missing:
        weights_BV = mx.pad(weights_BV, [(0, 0), (0, missing)])
    return weights_BV.reshape(weights_BV.shape[0], -1, BLOCK)


def _first_above(cumulative: mx.array, target: mx.array, weights: mx.array) -> mx.array:
    """Index [B, 1] of the first weight above 0 whose running sum exceeds the target.

    Added up one after the other, a weight of 0 is never first. A GPU adds in a tree, whose rounding may rise at
    one.
    """
    return mx.argmax((cumulative > target) & (weights > 0), axis=-1, keepdims=True)

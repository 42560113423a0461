"""Gradients of a whole batch, one micro-batch at a time.

The weights are left as they were, whatever happens.

Two ways to the same gradient. `batch_gradient` differentiates a micro-batch as one graph and keeps what the
blocks computed. With ``policy.gradient_checkpointing`` it goes block by block (`mlx_sumrl.training.layerwise`),
keeps only what each block read, and computes the rest a second time.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
from mlx.utils import tree_unflatten

from mlx_sumrl.policy.blocks import packed_logprobs
from mlx_sumrl.policy.head import HeadOptions
from mlx_sumrl.policy.policy import Policy, Weights
from mlx_sumrl.training.layerwise import layerwise_gradient
from mlx_sumrl.training.micro_batch import BatchGradient, MicroBatch, Share, add_sums, number


def batch_gradient(
    policy: Policy, micro_batches: Sequence[MicroBatch], options: HeadOptions
) -> BatchGradient:
    """Loss and gradients with respect to the trainable weights, added up over the micro-batches."""
    weights = policy.weights()
    policy.model.train()
    try:
        if policy.options.gradient_checkpointing and micro_batches:
            return layerwise_gradient(policy.model, micro_batches, options)
        return _by_graph(policy, weights, micro_batches, options)
    finally:
        policy.set_weights(weights)  # tracing leaves its own arrays in the model
        policy.model.eval()


def _by_graph(
    policy: Policy, weights: Weights, micro_batches: Sequence[MicroBatch], options: HeadOptions
) -> BatchGradient:
    model = policy.model

    def forward(weights: Weights, micro_batch: MicroBatch) -> Share:
        model.update(tree_unflatten(list(weights.items())))
        return micro_batch.share(packed_logprobs(model, micro_batch.rows, options))

    loss, sums, total = 0.0, dict[str, float](), dict[str, mx.array]()
    for micro_batch in micro_batches:
        # A copy: MLX swaps traced arrays into the dictionary it is given, and leaves them there on an error.
        (value, metrics), gradients = mx.value_and_grad(forward)(dict(weights), micro_batch)
        if total:
            gradients = {name: total[name].astype(mx.float32) + array for name, array in gradients.items()}
        mx.eval(value, metrics, gradients)
        total = gradients
        loss += number(value)
        add_sums(sums, metrics)
    return BatchGradient(loss, total, sums)

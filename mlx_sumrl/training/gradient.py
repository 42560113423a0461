"""Gradients of a whole batch, one micro-batch at a time.

Invariant: the loss of a micro-batch is its share of the batch's (divided by numbers of the whole batch), so the
shares, their gradients and their metrics simply add up; no micro-batch's graph outlives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import mlx.core as mx
from mlx.utils import tree_unflatten

from mlx_sumrl.policy.policy import Policy, Weights

B = TypeVar("B")
Share = tuple[mx.array, dict[str, mx.array]]
"""A micro-batch's share of the loss, and sums for the metrics."""


@dataclass(frozen=True)
class BatchGradient:
    """What a batch asks of the weights."""

    loss: float
    gradients: Weights
    """In the type of the weights' gradients; accumulated in float32 when there is more than one micro-batch."""
    sums: dict[str, float]


def batch_gradient(policy: Policy, micro_batches: Iterable[B], share: Callable[[B], Share]) -> BatchGradient:
    """Loss and gradients with respect to the trainable weights, added up over the micro-batches.

    ``share`` computes a micro-batch's share with ``policy.model``. The weights are left as they were, whatever
    happens.
    """
    model, weights = policy.model, policy.weights()

    def forward(weights: Weights, micro_batch: B) -> Share:
        model.update(tree_unflatten(list(weights.items())))
        return share(micro_batch)

    loss, sums, total = 0.0, dict[str, float](), dict[str, mx.array]()
    model.train()
    try:
        for micro_batch in micro_batches:
            # A copy: MLX swaps traced arrays into the dictionary it is given, and leaves them there on an error.
            (value, metrics), gradients = mx.value_and_grad(forward)(dict(weights), micro_batch)
            if total:
                gradients = {
                    name: total[name].astype(mx.float32) + array for name, array in gradients.items()
                }
            mx.eval(value, metrics, gradients)
            total = gradients
            loss += float(value.item())  # type: ignore[arg-type]
            for name, array in metrics.items():
                sums[name] = sums.get(name, 0.0) + float(array.item())  # type: ignore[arg-type]
    finally:
        policy.set_weights(weights)  # tracing leaves its own arrays in the model
        model.eval()
    return BatchGradient(loss, total, sums)

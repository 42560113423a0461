"""A micro-batch and what it asks of the weights.

Invariant: the loss of a micro-batch is its share of the batch's (divided by numbers of the whole batch), so the
shares, their gradients and their metrics simply add up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from mlx_sumrl.policy.packing import PackedRows
from mlx_sumrl.policy.policy import Weights

Share = tuple[mx.array, dict[str, mx.array]]
"""A micro-batch's share of the loss, and sums for the metrics."""


@dataclass(frozen=True)
class MicroBatch:
    """Rows that go through the model together, and what their log-probabilities cost."""

    rows: PackedRows
    share: Callable[[mx.array], Share]
    """From log-probabilities [B, T], 0 at padding."""


@dataclass(frozen=True)
class BatchGradient:
    """What a batch asks of the weights."""

    loss: float
    gradients: Weights
    """In the type of the weights' gradients; one graph at a time adds several of them up in float32."""
    sums: dict[str, float]


def add_sums(sums: dict[str, float], metrics: dict[str, mx.array]) -> None:
    """Add a micro-batch's sums to those of the batch."""
    for name, array in metrics.items():
        sums[name] = sums.get(name, 0.0) + number(array)


def number(array: mx.array) -> float:
    """A scalar array as a float."""
    return float(array.item())  # type: ignore[arg-type]

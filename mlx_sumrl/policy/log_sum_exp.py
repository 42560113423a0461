"""From products of hidden states and weights to log-probabilities, a tile of the vocabulary at a time."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from mlx_sumrl.policy.exponential import exp


@dataclass(frozen=True)
class LogitRule:
    """From products of hidden states and weights to logits, and back: temperature and capping."""

    scale: float
    cap: float | None

    def of(self, hidden: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
        """Logits [n, v] of a tile."""
        logits = hidden @ weight.T
        if bias is not None:
            logits = logits + bias
        if self.cap is not None:
            logits = self.cap * mx.tanh(logits / self.cap)
        return logits * self.scale if self.scale != 1 else logits

    def back(self, cotangent: mx.array, logits: mx.array) -> mx.array:
        """Cotangents of the products, before the bias, from those of the logits."""
        if self.scale != 1:
            cotangent = cotangent * self.scale
        if self.cap is not None:
            cotangent = cotangent * (1 - mx.square(logits / (self.scale * self.cap)))
        return cotangent


@dataclass(frozen=True)
class RunningTotals:
    """What the tiles of a range of tokens have added up to; all [n] float32."""

    top: mx.array
    """The largest logit so far."""
    total: mx.array
    """Sum of exp(logit - top)."""
    chosen: mx.array
    """The target's logit, 0 until its tile came."""

    @staticmethod
    def start(n: int) -> RunningTotals:
        """Before the first tile."""
        return RunningTotals(mx.full((n,), -mx.inf), mx.zeros((n,)), mx.zeros((n,)))

    def add(self, z: mx.array, targets: mx.array, rows: slice) -> tuple[RunningTotals, mx.array]:
        """With one more tile, and exp(z - top) of it."""
        top = mx.maximum(self.top, z.max(axis=-1))
        e = exp(z - top[:, None])
        total = self.total * mx.exp(self.top - top) + e.sum(axis=-1)
        place, inside = columns(targets, rows)
        found = mx.take_along_axis(z, place[:, None], axis=-1)[:, 0]
        return RunningTotals(top, total, mx.where(inside, found, self.chosen)), e

    @property
    def log_total(self) -> mx.array:
        """The log-sum-exp."""
        return self.top + mx.log(self.total)

    @property
    def logprobs(self) -> mx.array:
        """Of the targets; the difference to the largest logit first, which is exact where both are close."""
        return (self.chosen - self.top) - mx.log(self.total)


def columns(targets: mx.array, rows: slice) -> tuple[mx.array, mx.array]:
    """Columns of targets in a tile, 0 for those outside of it, and which are inside."""
    inside = (targets >= rows.start) & (targets < rows.stop)
    return mx.where(inside, targets - rows.start, 0), inside

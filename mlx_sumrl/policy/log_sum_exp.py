"""From products of hidden states and weights to log-probabilities, a tile of the vocabulary at a time."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from mlx_sumrl.policy.exponential import exp


@dataclass(frozen=True)
class LogitRule:
    """From products of hidden states and weights to logits, and back: temperature and capping.

    And what is asked of them: with a share e of ``smoothing`` (Szegedy et al. 2016, arXiv:1512.00567, section 7) it is
    not log p(y) but (1 - e) log p(y) + e mean_v log p(v). With z the logits and p their softmax that is
    (1 - e) z_y + e mean(z) - logsumexp(z), and its slope by z is (1 - e) [v = y] + e / V - p.
    """

    scale: float
    cap: float | None
    smoothing: float = 0.0

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

    def spread(self, logits: mx.array, weight: mx.array, vocabulary: int) -> mx.array:
        """What the smoothed share of a tile asks of the hidden states: [n, D], or [1, D] for all alike."""
        share = self.smoothing / vocabulary
        if self.cap is None:  # a logit's slope is the same for every token
            return self.back(mx.full((1, 1), share), logits) * weight.sum(axis=0)
        return self.back(mx.full(logits.shape, share), logits) @ weight

    def asked(self, totals: RunningTotals, vocabulary: int) -> mx.array:
        """log p of the targets [n], or of smoothed ones."""
        if totals.summed is None:
            return totals.logprobs
        even = totals.summed / vocabulary - totals.log_total
        return (1 - self.smoothing) * totals.logprobs + self.smoothing * even


@dataclass(frozen=True)
class RunningTotals:
    """What the tiles of a range of tokens have added up to; all [n] float32."""

    top: mx.array
    """The largest logit so far."""
    total: mx.array
    """Sum of exp(logit - top)."""
    chosen: mx.array
    """The target's logit, 0 until its tile came."""
    summed: mx.array | None
    """Sum of the logits, where targets are smoothed."""

    @staticmethod
    def start(n: int, rule: LogitRule) -> RunningTotals:
        """Before the first tile."""
        summed = mx.zeros((n,)) if rule.smoothing else None
        return RunningTotals(mx.full((n,), -mx.inf), mx.zeros((n,)), mx.zeros((n,)), summed)

    @property
    def added(self) -> list[mx.array]:
        """What the next tile has to wait for."""
        return [self.total, self.chosen, *([] if self.summed is None else [self.summed])]

    def add(self, z: mx.array, targets: mx.array, rows: slice) -> tuple[RunningTotals, mx.array]:
        """With one more tile, and exp(z - top) of it."""
        top = mx.maximum(self.top, z.max(axis=-1))
        e = exp(z - top[:, None])
        total = self.total * mx.exp(self.top - top) + e.sum(axis=-1)
        place, inside = columns(targets, rows)
        found = mx.take_along_axis(z, place[:, None], axis=-1)[:, 0]
        summed = None if self.summed is None else self.summed + z.sum(axis=-1)
        return RunningTotals(top, total, mx.where(inside, found, self.chosen), summed), e

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

"""Causal attention for training: a prompt's keys and values are read where they are, and little lives at once.

Rows of completions attend to the prompt that they all follow, whose keys and values are never repeated for each of
them, and to their own past. Scores are made for a range of queries at a time, and for a long row only up to its
last query, which leaves out nearly half of them. Between the passes only their exponentials are kept: the backward
pass needs none of its own, and the temporaries of one range (`SCORES`) live at once.

Query heads that share a key head are rows of the same product, so no key is repeated for them either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlx_sumrl.policy.exponential import exp, softmax

SCORES = 1 << 18
"""Scores that are made at once, about; a few float32 arrays of that size live while they are."""


@dataclass(frozen=True)
class _Part:
    """Queries that are done together: of some rows, from one position to another."""

    rows: slice
    queries: slice


def causal_attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    scale: float,
    prefix: tuple[mx.array, mx.array] | None = None,
) -> mx.array:
    """What B rows of T tokens see [B, H, T, E] of their own past and of a prefix that all of them follow.

    ``queries`` [B, H, T, E], ``keys`` and ``values`` [B, K, T, E] with H a multiple of K; ``prefix`` keys and
    values [1, K, L, E]. Differentiable in all of them. Equal to softmax(scale q k^T + mask) v.
    """
    B, H, T, E = queries.shape
    K = keys.shape[1]
    L = 0 if prefix is None else prefix[0].shape[2]
    parts = _parts(B, H, T, L)
    grouped = queries.reshape(B, K, H // K, T, E)

    @mx.custom_function
    def attend(*arrays: mx.array) -> tuple[mx.array, ...]:
        q, own, before = _split(arrays)
        outputs: list[mx.array] = []
        kept: list[mx.array] = []
        for part in parts:
            (q,) = mx.depends([q], outputs[-1:])
            inputs = _Inputs.of(part, q, own, before, scale)
            weights = inputs.weights()
            outputs.append(inputs.outputs(weights))
            kept += weights.arrays()
        return (_joined(outputs, parts, B), *kept)

    @attend.vjp
    def attend_vjp(
        arrays: Sequence[mx.array], cotangents: Sequence[mx.array], results: Sequence[mx.array]
    ) -> tuple[mx.array, ...]:
        q, own, before = _split(arrays)
        output, kept, each = results[0], results[1:], 2 if before is None else 3
        d_queries: list[mx.array] = []
        d_own = [mx.zeros(own[0].shape, dtype=own[0].dtype) for _ in range(2)]
        d_before = (
            [] if before is None else [mx.zeros(before[0].shape, dtype=before[0].dtype) for _ in range(2)]
        )
        for place, part in enumerate(parts):
            (q,) = mx.depends([q], [*d_queries[-1:], *d_own, *d_before])
            inputs = _Inputs.of(part, q, own, before, scale)
            cotangent = cotangents[0][part.rows, :, :, part.queries]
            made = output[part.rows, :, :, part.queries]
            found = inputs.backward(_Weights(*kept[place * each : (place + 1) * each]), made, cotangent)
            d_queries.append(found.queries)
            end = part.queries.stop
            d_own = [
                array.at[part.rows, :, :end].add(more) for array, more in zip(d_own, found.own, strict=True)
            ]
            d_before = [array + more for array, more in zip(d_before, found.before, strict=True)]
        return (_joined(d_queries, parts, B), *d_own, *d_before)

    attended: mx.array = attend(grouped, keys, values, *(prefix or ()))[0]  # type: ignore[index]
    return attended.reshape(B, H, T, E)


def sampling_attention(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | str | None
) -> mx.array:
    """What the last T tokens of B rows see [B, H, T, E] of all S tokens so far; no gradient.

    ``queries`` [B, H, T, E], ``keys`` and ``values`` [B, K, S, E]. With T = 1 the mask is None or [B, 1, 1, S],
    True where a row may look; with T > 1 it is causal and B is 1.
    """
    B, H, T, E = queries.shape
    K, S = keys.shape[1], keys.shape[2]
    if T > 1:
        prefix = (keys[:, :, : S - T], values[:, :, : S - T]) if S > T else None
        return causal_attention(queries, keys[:, :, S - T :], values[:, :, S - T :], scale, prefix)
    scores = (queries.reshape(B, K, H // K, E) @ keys.swapaxes(-1, -2)).astype(mx.float32) * scale
    if isinstance(mask, mx.array):
        scores = mx.where(mask, scores, -mx.inf)
    return (softmax(scores).astype(queries.dtype) @ values).reshape(B, H, T, E)


@dataclass(frozen=True)
class _Gradients:
    queries: mx.array
    own: list[mx.array]
    before: list[mx.array]


@dataclass(frozen=True)
class _Weights:
    """Probabilities are ``share`` times the others, which are e^(score - the query's highest)."""

    share: mx.array
    """[b, K, R t, 1], float32."""
    own: mx.array
    """Of the row's own tokens [b, K, R t, u]."""
    before: Any = None
    """Of the prefix [K, b R t, L], where there is one."""

    def arrays(self) -> list[mx.array]:
        """Those that there are, in order."""
        return [self.share, self.own, *([] if self.before is None else [self.before])]


@dataclass(frozen=True)
class _Inputs:
    """What the queries of a part see. b rows, K key heads, R query heads for each, t queries."""

    queries: mx.array
    """[b, K, R, t, E]"""
    keys: mx.array
    """[b, K, u, E] with u the last query's position + 1"""
    values: mx.array
    before: tuple[mx.array, mx.array] | None
    """[1, K, L, E] each"""
    scale: float

    @staticmethod
    def of(part: _Part, q: mx.array, own: Any, before: Any, scale: float) -> _Inputs:
        end = part.queries.stop
        return _Inputs(
            q[part.rows, :, :, part.queries],
            own[0][part.rows, :, :end],
            own[1][part.rows, :, :end],
            before,
            scale,
        )

    def weights(self) -> _Weights:
        """How much each query sees of what."""
        t, u = self.queries.shape[3], self.keys.shape[2]
        q = self._scaled()
        own = (self._by_row(q) @ self.keys.swapaxes(-1, -2)).astype(mx.float32)
        seen = mx.arange(u)[None, :] <= mx.arange(u - t, u)[:, None]
        seen = mx.broadcast_to(seen[None], (q.shape[2], t, u)).reshape(-1, u)
        own = mx.where(seen, own, -mx.inf)
        top, dtype = own.max(axis=-1, keepdims=True), self.queries.dtype
        if self.before is None:
            own = exp(own - top)
            return _Weights(1 / own.sum(axis=-1, keepdims=True), own.astype(dtype), None)
        before = (self._by_head(q) @ self.before[0][0].swapaxes(-1, -2)).astype(mx.float32)
        top = mx.maximum(top, self._like_row(before.max(axis=-1, keepdims=True)))
        own = exp(own - top)
        before = exp(before - self._like_head(top))
        total = own.sum(axis=-1, keepdims=True) + self._like_row(before.sum(axis=-1, keepdims=True))
        return _Weights(1 / total, own.astype(dtype), before.astype(dtype))

    def outputs(self, weights: _Weights) -> mx.array:
        """[b, K, R, t, E]"""
        made = (weights.own @ self.values).reshape(self.queries.shape)
        if self.before is not None:
            made = made + self._from_head(weights.before @ self.before[1][0])
        return (made * self._share(weights)).astype(self.queries.dtype)

    def backward(self, weights: _Weights, output: mx.array, cotangent: mx.array) -> _Gradients:
        """Cotangents of queries, keys, values and the prefix from that of the output.

        ``weights`` are not divided by their sums; the cotangent is instead, which is smaller.
        """
        b, K, R, t, _E = self.queries.shape
        dtype = self.queries.dtype
        cotangent = (cotangent * self._share(weights)).astype(dtype)
        centre = (cotangent * output).astype(mx.float32).sum(axis=-1, keepdims=True)
        scaled = self._scaled()
        q, d = self._by_row(scaled), self._by_row(cotangent)
        slope = weights.own * (d @ self.values.swapaxes(-1, -2) - centre.reshape(b, K, R * t, 1))
        slope = slope.astype(dtype)
        d_queries = (slope @ self.keys).reshape(self.queries.shape)
        own = [slope.swapaxes(-1, -2) @ q, weights.own.swapaxes(-1, -2) @ d]
        d_before: list[mx.array] = []
        if self.before is not None:
            q, d = self._by_head(scaled), self._by_head(cotangent)
            keys, values = self.before
            slope = weights.before * (d @ values[0].swapaxes(-1, -2) - self._by_head(centre))
            slope = slope.astype(dtype)
            d_queries = d_queries + self._from_head(slope @ keys[0])
            d_before = [
                (slope.swapaxes(-1, -2) @ q)[None],
                (weights.before.swapaxes(-1, -2) @ d)[None],
            ]
        return _Gradients((d_queries * self.scale).astype(dtype), own, d_before)

    def _scaled(self) -> mx.array:
        """Queries, so that their products with keys are scores."""
        return (self.queries * self.scale).astype(self.queries.dtype)

    def _share(self, weights: _Weights) -> mx.array:
        """What the weights of a query are divided by, inverted [b, K, R, t, 1]."""
        return weights.share.reshape(*self.queries.shape[:4], 1)

    def _by_row(self, array: mx.array) -> mx.array:
        """[b, K, R, t, E] as [b, K, R t, E]."""
        b, K, R, t, E = array.shape
        return array.reshape(b, K, R * t, E)

    def _by_head(self, array: mx.array) -> mx.array:
        """[b, K, R, t, E] as [K, b R t, E]."""
        b, K, R, t, E = array.shape
        return array.swapaxes(0, 1).reshape(K, b * R * t, E)

    def _from_head(self, array: mx.array) -> mx.array:
        """Back again."""
        b, K, R, t, _ = self.queries.shape
        return array.reshape(K, b, R, t, -1).swapaxes(0, 1)

    def _like_row(self, column: mx.array) -> mx.array:
        """A column [K, b R t, 1] as [b, K, R t, 1]."""
        b, K, R, t, _ = self.queries.shape
        return column.reshape(K, b, R * t, 1).swapaxes(0, 1)

    def _like_head(self, column: mx.array) -> mx.array:
        """Back again."""
        b, K, R, t, _ = self.queries.shape
        return column.swapaxes(0, 1).reshape(K, b * R * t, 1)


def _parts(B: int, H: int, T: int, L: int) -> list[_Part]:
    """Whole rows where several fit, else ranges of a row's queries."""
    rows = SCORES // (H * T * (L + T))
    if rows >= 1:
        return [_Part(slice(b, min(b + rows, B)), slice(0, T)) for b in range(0, B, rows)]
    step = max(16, SCORES // (H * (L + T)))
    return [_Part(slice(b, b + 1), slice(t, min(t + step, T))) for b in range(B) for t in range(0, T, step)]


def _joined(arrays: Sequence[mx.array], parts: Sequence[_Part], B: int) -> mx.array:
    """Results of the parts as one array again."""
    rows: dict[int, list[mx.array]] = {}
    for part, array in zip(parts, arrays, strict=True):
        rows.setdefault(part.rows.start, []).append(array)
    return mx.concatenate([mx.concatenate(found, axis=3) for found in rows.values()])


def _split(arrays: Sequence[mx.array]) -> Any:
    """Queries; keys and values; those of the prefix, or None."""
    return arrays[0], arrays[1:3], tuple(arrays[3:]) or None

"""The sampling distribution: logits / temperature, then top-k, then top-p, as vLLM orders them.

The same function serves the sampler and teacher forcing, so that both speak of one distribution.
"""

from __future__ import annotations

import mlx.core as mx


def filtered_logits(
    logits_BV: mx.array, *, temperature: float, top_p: float, top_k: int, keep: mx.array | None = None
) -> mx.array:
    """Logits [B, V] float32 of the sampling distribution; -inf where a filter takes a token out.

    top-k keeps the k most likely tokens (ties to the lower id); top-p keeps the smallest set of most likely
    tokens whose probability reaches top_p. ``keep`` [B] names one token a row that is never taken out.
    """
    if temperature != 1:
        logits_BV = logits_BV / temperature
    V = logits_BV.shape[-1]
    limit_k = 0 < top_k < V
    if not limit_k and top_p >= 1:
        return logits_BV
    order_BV = mx.argsort(mx.stop_gradient(-logits_BV), axis=-1)
    # The order turned round by a scatter: a second sort takes 28 ms for 64 x 4,096 on a CPU, this 0.2.
    places_BV = mx.broadcast_to(mx.arange(V, dtype=order_BV.dtype), order_BV.shape)
    rank_BV = mx.put_along_axis(mx.zeros_like(order_BV), order_BV, places_BV, axis=-1)
    allowed_BV = rank_BV < top_k if limit_k else mx.ones(logits_BV.shape, dtype=mx.bool_)
    if top_p < 1:
        frozen = mx.stop_gradient(mx.where(allowed_BV, logits_BV, -mx.inf))
        probabilities = mx.take_along_axis(mx.softmax(frozen, axis=-1), order_BV, axis=-1)
        # Kept while the probability *before* a token is short of top_p: the token that reaches it is in.
        before = mx.cumsum(probabilities, axis=-1, inclusive=False)
        allowed_BV = allowed_BV & mx.take_along_axis(before < top_p, rank_BV, axis=-1)
    if keep is not None:
        allowed_BV = allowed_BV | (mx.arange(V)[None, :] == keep[:, None])
    return mx.where(allowed_BV, logits_BV, -mx.inf)

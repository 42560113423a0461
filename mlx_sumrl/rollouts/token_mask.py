"""What may come next in each row of a batch, as a mask of its logits."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from mlx_sumrl.rollouts.constraint import Matcher


def masked_logits(logits_BV: mx.array, matchers_B: Sequence[Matcher | None]) -> mx.array:
    """The same logits [B, V], -inf for tokens that may not come next; a row without a matcher keeps its own.

    Raises:
        UserError: no token may come next in some row.
    """
    B, V = logits_BV.shape
    words_BW = np.full((B, -(-V // 32)), -1, np.int32)
    for words, matcher in zip(words_BW, matchers_B, strict=True):
        if matcher is not None:
            matcher.fill(words)
    if (words_BW == -1).all():
        return logits_BV
    allowed_BV = np.unpackbits(words_BW.view(np.uint8), axis=1, count=V, bitorder="little").view(np.bool_)
    return mx.where(mx.array(allowed_BV), logits_BV, -mx.inf)

"""How much of a text stood there before."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def repeated_share(tokens: Sequence[Hashable], ngram: int) -> float:
    """seq-rep-n: the share of n-grams of tokens or words that stood in the text before, 1 - distinct / all, in [0, 1).

    0 for a text with fewer than two n-grams. Welleck et al. 2019, arXiv:1908.04319, section 6.1.
    """
    grams = [tuple(tokens[start : start + ngram]) for start in range(len(tokens) - ngram + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0

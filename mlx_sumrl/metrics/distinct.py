"""How varied texts are: distinct n-grams (Li et al. 2016, arXiv:1510.03055). Never imports mlx."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_sumrl.metrics.words import ngrams, words


def distinct(texts: Sequence[str], n: int) -> float | None:
    """Different n-grams over all n-grams of one or more texts, in (0, 1]; None where they have none.

    Over many answers it says whether they are all alike, which no number of one answer shows. (Li et al. divide by
    words; here by n-grams, as most do, so that 1 means that nothing is said twice.)

    Raises:
        ValueError: ``n`` below 1.
    """
    grams = [gram for text in texts for gram in ngrams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else None

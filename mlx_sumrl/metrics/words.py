"""Text -> words as the metrics of extraction, diversity and entities count them. Never imports mlx."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import regex

from mlx_sumrl.metrics.unspaced import space_characters

_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+(?:['’.,][\p{L}\p{M}\p{N}]+)*")  # noqa: RUF001


@lru_cache(maxsize=1024)
def words(text: str) -> tuple[str, ...]:
    """Words in order, lower-cased and not stemmed, in any alphabet; punctuation is left out.

    ``don't``, ``3.5`` and ``u.s`` are one word each, ``well-known`` is two. Chinese, Japanese, Korean and Thai are
    split into characters (`space_characters`).
    """
    return tuple(_WORD.findall(space_characters(text.lower())))


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """The n-grams of N tokens in order: N - n + 1 of them, or none.

    Raises:
        ValueError: ``n`` below 1.
    """
    if n < 1:
        raise ValueError(f"there are no {n}-grams; give 1 or more")
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]

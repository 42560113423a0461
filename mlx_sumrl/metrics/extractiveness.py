"""How much of a summary is copied from its document: coverage and density (Grusky et al. 2018, "Newsroom"), novel
n-grams (See et al. 2017), and compression. Never imports mlx.

All count `words`: lower-cased, without punctuation. (Newsroom's own numbers count punctuation as words, too, and are a
little different for it.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from mlx_sumrl.metrics.words import ngrams, words


def fragment_lengths(summary: Sequence[str], document: Sequence[str]) -> list[int]:
    """Lengths of the extractive fragments of a summary, in its order.

    The definition's F(A, S): from left to right, the longest run of words that stands in the document too, then on
    after it; a word that does not is passed over. Only places where a run can begin are looked at, so it takes far less
    than the |A| · |S| of the paper's algorithm.
    """
    places: dict[str, list[int]] = {}
    for at, word in enumerate(document):
        places.setdefault(word, []).append(at)
    lengths = []
    start = 0
    while start < len(summary):
        longest = 0
        for at in places.get(summary[start], ()):
            # A place whose run is no longer than the longest so far differs from it at that distance or before.
            ahead = start + longest
            if (
                ahead >= len(summary)
                or at + longest >= len(document)
                or document[at + longest] != summary[ahead]
            ):
                continue
            run = 1
            while (
                start + run < len(summary)
                and at + run < len(document)
                and document[at + run] == summary[start + run]
            ):
                run += 1
            longest = max(longest, run)
        if longest:
            lengths.append(longest)
        start += max(longest, 1)
    return lengths


@dataclass(frozen=True, slots=True)
class Extractiveness:
    """Of one summary with at least one word."""

    coverage: float
    """Share of the summary's words that lie in an extractive fragment, in [0, 1]."""
    density: float
    """Mean length, over the summary's words, of the fragment that a word lies in: 1/|S| · sum of squared lengths; from
    0 to the summary's own length."""
    compression: float
    """Words of the document per word of the summary."""


@lru_cache(maxsize=1024)
def extractiveness(text: str, document: str) -> Extractiveness | None:
    """Coverage, density and compression of a summary; None where it has no word."""
    summary, source = words(text), words(document)
    if not summary:
        return None
    lengths = fragment_lengths(summary, source)
    return Extractiveness(
        coverage=sum(lengths) / len(summary),
        density=sum(length**2 for length in lengths) / len(summary),
        compression=len(source) / len(summary),
    )


def coverage(text: str, document: str) -> float | None:
    """`Extractiveness.coverage`, in [0, 1]; None for a text without a word."""
    found = extractiveness(text, document)
    return None if found is None else found.coverage


def density(text: str, document: str) -> float | None:
    """`Extractiveness.density`, at least 0; None for a text without a word."""
    found = extractiveness(text, document)
    return None if found is None else found.density


def compression(text: str, document: str) -> float | None:
    """`Extractiveness.compression`, words per word; None for a text without a word."""
    found = extractiveness(text, document)
    return None if found is None else found.compression


def novelty(text: str, document: str, n: int) -> float | None:
    """Share of the summary's n-grams, each occurrence counted, that the document does not have, in [0, 1].

    None where the text has fewer than ``n`` words. Raises `ValueError` for ``n`` below 1.
    """
    said = ngrams(words(text), n)
    if not said:
        return None
    known = set(ngrams(words(document), n))
    return sum(gram not in known for gram in said) / len(said)

"""Documents that are the same, exactly or nearly. Never imports mlx.

Invariant: every near pair that is reported has at least the asked Jaccard similarity, computed from the shingles
themselves: MinHash only proposes pairs (Broder, 1997), so there are no false ones, and a pair at the threshold is
missed with a probability of at most `MISSED`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.config.prepare import DuplicatesConfig
from mlx_sumrl.errors import UserError

MISSED = 1e-3
"""Probability that a pair exactly at the threshold is not proposed; more similar ones are missed more rarely."""
_MOST_PAIRS = 5_000_000
# Han and kana, which are written without spaces.
_CHARACTER_WORDS = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")
_WORD = re.compile(r"\w+")

Ticker = Callable[[int], None]
"""Told how many documents are behind."""


@dataclass(frozen=True, slots=True)
class NearPair:
    """Two documents that are nearly the same."""

    first: int
    second: int
    similarity: float
    """Jaccard similarity of their shingles, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Duplicates:
    """What is the same among some documents, by their index."""

    exact: list[list[int]]
    """Indices of the same text, but for case and white space; two at least, in order."""
    near: list[NearPair]
    """Pairs of different texts; of a text that is there several times, its first index."""

    def links(self) -> list[tuple[int, int]]:
        """Pairs of indices that belong together; what is linked through others is not listed."""
        chains = [(first, other) for first, *others in self.exact for other in others]
        return chains + [(pair.first, pair.second) for pair in self.near]

    def among(self, kept: Sequence[int]) -> Duplicates:
        """The same for a part of the documents (`kept`, ascending), which are then counted from 0."""
        new = {old: index for index, old in enumerate(kept)}
        copies = {same[0]: same for same in self.exact}
        exact = [[new[old] for old in same if old in new] for same in self.exact]
        near = []
        for pair in self.near:
            # A dropped first copy leaves its place to the next one.
            first, second = (
                next((new[old] for old in copies.get(end, [end]) if old in new), None)
                for end in (pair.first, pair.second)
            )
            if first is not None and second is not None:
                near.append(NearPair(min(first, second), max(first, second), pair.similarity))
        near.sort(key=lambda pair: (pair.first, pair.second))
        return Duplicates([same for same in exact if len(same) > 1], near)


def normalised(text: str) -> str:
    """A text without differences of case and white space."""
    return " ".join(text.casefold().split())


def words_of(text: str) -> list[str]:
    """Words without punctuation, in lower case; each Chinese or Japanese character is a word."""
    return _WORD.findall(_CHARACTER_WORDS.sub(r" \1 ", text.casefold()))


def shingles(text: str, size: int) -> frozenset[str]:
    """Every `size` words in a row; a shorter text is one shingle, and one without words has none."""
    words = words_of(text)
    if not words:
        return frozenset()
    return frozenset(" ".join(words[start : start + size]) for start in range(max(len(words) - size, 0) + 1))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Share of the shingles of both that is in each, 0 to 1; 0 where there are none."""
    common = len(first & second)
    return common / (len(first) + len(second) - common) if common else 0.0


def bands_for(threshold: float, permutations: int) -> tuple[int, int]:
    """Bands and hashes of a band of a signature, so that a pair at `threshold` is missed at most with `MISSED`.

    A pair of similarity s agrees in one of b bands of r hashes with probability 1 - (1 - s^r)^b; r is the
    largest that keeps it high enough, since it is what keeps unlike pairs from being proposed.
    """
    for rows in range(permutations, 1, -1):
        bands = permutations // rows
        if (1 - threshold**rows) ** bands <= MISSED:
            return bands, rows
    return permutations, 1


def find_duplicates(
    texts: Sequence[str], options: DuplicatesConfig, tick: Ticker = lambda done: None
) -> Duplicates:
    """Exact duplicates, and near ones unless they are switched off.

    Raises:
        UserError: so many documents are alike that their pairs cannot be listed.
    """
    by_text: dict[str, list[int]] = {}
    for index, text in enumerate(texts):
        by_text.setdefault(normalised(text), []).append(index)
    exact = [same for same in by_text.values() if len(same) > 1]
    if options.near is None:
        return Duplicates(exact, [])
    firsts = [same[0] for same in by_text.values()]
    return Duplicates(exact, _near(texts, firsts, options, options.near, tick))


def _near(
    texts: Sequence[str], firsts: Sequence[int], options: DuplicatesConfig, threshold: float, tick: Ticker
) -> list[NearPair]:
    bands, rows = bands_for(threshold, options.permutations)
    signatures = _signatures([texts[index] for index in firsts], options.shingle, bands * rows, tick)
    proposed: set[tuple[int, int]] = set()
    for band in range(bands):
        for alike in _alike(signatures[:, band * rows : (band + 1) * rows]):
            too_many = len(alike) * (len(alike) - 1) // 2 > _MOST_PAIRS
            if not too_many:
                proposed.update(combinations(alike, 2))
            if too_many or len(proposed) > _MOST_PAIRS:
                raise UserError(
                    f"more than {_MOST_PAIRS:,} pairs of documents may be near duplicates (duplicates.near "
                    f"{threshold}): the sources repeat themselves, or a template hides their differences; raise "
                    "duplicates.near, or set it to null"
                )

    @lru_cache(maxsize=4096)
    def shingled(document: int) -> frozenset[str]:
        return shingles(texts[document], options.shingle)

    pairs = []
    for first, second in sorted(proposed):
        similarity = jaccard(shingled(firsts[first]), shingled(firsts[second]))
        if similarity >= threshold:
            pairs.append(NearPair(firsts[first], firsts[second], similarity))
    return pairs


def _signatures(texts: Sequence[str], size: int, hashes: int, tick: Ticker) -> NDArray[np.uint32]:
    """MinHash signatures [texts, hashes]; one of a text without words is all of the largest number."""
    from datasketch import MinHash  # with it comes scipy, half a second

    signatures = np.empty((len(texts), hashes), dtype=np.uint32)
    empty = MinHash(num_perm=hashes, hashfunc=_hash)
    for index, text in enumerate(texts):
        signature = empty.copy()
        if own := shingles(text, size):
            signature.update_batch([shingle.encode() for shingle in own])
        signatures[index] = signature.hashvalues
        tick(index + 1)
    return signatures


def _alike(band: NDArray[np.uint32]) -> Iterator[list[int]]:
    """Rows [texts, hashes of a band] that are equal, two at least.

    Band after band in place of one index of them all (datasketch's MinHashLSH), which took 5.1 s and 214 MB for
    12,960 dialogues where this takes 2.2 s and 83 MB, and finds the same pairs.
    """
    keys = np.ascontiguousarray(band).view(np.dtype((np.void, band.shape[1] * band.itemsize))).ravel()
    _, which, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(which, kind="stable")
    ends = np.cumsum(counts)
    for group in np.flatnonzero(counts > 1):
        yield order[ends[group] - counts[group] : ends[group]].tolist()


def _hash(shingle: bytes) -> int:
    """32 bits; MinHash mixes them before it uses them."""
    return zlib.crc32(shingle)


def clusters(count: int, links: Sequence[tuple[int, int]]) -> list[int]:
    """The cluster of each of `count` rows, so that linked rows share theirs; numbered by first appearance."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = np.array(links, dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    labels = connected_components(graph, directed=False)[1].tolist()
    numbers: dict[int, int] = {}
    return [numbers.setdefault(label, len(numbers)) for label in labels]

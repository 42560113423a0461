"""Exact and near duplicates: truth by hand, by brute force, and on planted copies of known similarity."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_sumrl.config.prepare import DuplicatesConfig
from mlx_sumrl.data import duplicates
from mlx_sumrl.data.duplicates import (
    MISSED,
    NearPair,
    bands_for,
    clusters,
    find_duplicates,
    jaccard,
    shingles,
    words_of,
)
from mlx_sumrl.errors import UserError

OPTIONS = DuplicatesConfig()
WORDS = 60
"""Words of a planted document: it has 58 shingles of three."""


def document(start: int) -> list[str]:
    """Words that no other document has."""
    return [f"w{start * WORDS + n}" for n in range(WORDS)]


def changed(words: list[str], count: int) -> list[str]:
    """A copy with `count` new words, far enough from each other and the ends to change three shingles each."""
    copy = list(words)
    for n in range(count):
        copy[5 + 12 * n] = f"new{words[0]}x{n}"
    return copy


def similarity(count: int) -> float:
    """Jaccard of a document and its copy with `count` changed words: 3 of 58 shingles go, 3 come, for each."""
    return (58 - 3 * count) / (58 + 3 * count)


def brute_force(texts: list[str], threshold: float) -> dict[tuple[int, int], float]:
    """Every pair from `threshold` on, by tuples of words instead of the library's shingles."""

    def of(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return {tuple(words[n : n + 3]) for n in range(max(len(words) - 2, 1))} if words else set()

    sets = [of(text) for text in texts]
    found = {}
    for (i, first), (j, second) in combinations(enumerate(sets), 2):
        if first | second and len(first & second) / len(first | second) >= threshold:
            found[i, j] = len(first & second) / len(first | second)
    return found


def test_shingles_by_hand() -> None:
    assert shingles("A b, c d. E", 3) == {"a b c", "b c d", "c d e"}
    assert shingles("a b", 3) == {"a b"}
    assert shingles(" .!? ", 3) == frozenset()
    assert jaccard(shingles("a b c d e", 3), shingles("a b c d f", 3)) == 2 / 4
    assert jaccard(frozenset(), frozenset()) == 0.0


def test_chinese_characters_are_words() -> None:
    assert words_of("小米手机5发布。Xiaomi") == ["小", "米", "手", "机", "5", "发", "布", "xiaomi"]
    assert shingles("小米手机", 3) == {"小 米 手", "米 手 机"}
    assert words_of("東京タワー") == ["東", "京", "タ", "ワ", "ー"]
    assert words_of("Straße don't") == ["strasse", "don", "t"]


def test_bands_by_hand() -> None:
    # .7 ** 4 = .2401 and .7599 ** 32 = 1.5e-4; with five hashes a band: .83193 ** 25 = 1.0e-2, which is too much.
    assert bands_for(0.7, 128) == (32, 4)


@given(st.floats(0.21, 1.0), st.integers(16, 512))
def test_bands_miss_rarely(threshold: float, permutations: int) -> None:
    bands, rows = bands_for(threshold, permutations)
    assert bands * rows <= permutations
    assert (1 - threshold**rows) ** bands <= MISSED or rows == 1


def test_planted_copies_are_all_found() -> None:
    """200 documents, 20 exact and 20 near copies, in random order; what is no copy is not found."""
    plain = [document(n) for n in range(200)]
    rows: list[tuple[str, int, int | None]] = [(" ".join(words), n, None) for n, words in enumerate(plain)]
    rows += [(f"  {' '.join(plain[n]).upper()}\n", n, 0) for n in range(20)]
    truth = {n: 1 + n % 3 for n in range(20, 40)}  # 1 to 3 changed words: .90, .81, .73
    rows += [(" ".join(changed(plain[n], count)), n, count) for n, count in truth.items()]
    rows += [(" ".join(changed(plain[n], 4)), n, 4) for n in range(40, 60)]  # .66: below the threshold
    random.Random(0).shuffle(rows)
    found = find_duplicates([text for text, _, _ in rows], OPTIONS)
    assert {frozenset(rows[i][1] for i in same) for same in found.exact} == {
        frozenset([n]) for n in range(20)
    }
    assert all(len(same) == 2 for same in found.exact)
    assert len(found.near) == 20
    for pair in found.near:
        assert rows[pair.first][1] == rows[pair.second][1]
        assert pair.similarity == pytest.approx(similarity(truth[rows[pair.first][1]]), abs=1e-12)
    assert {rows[pair.first][1] for pair in found.near} == set(truth)


@settings(deadline=None)  # the first example imports datasketch
@given(
    st.lists(
        st.lists(st.sampled_from(["ab", "cd", "ef", "gh"]), max_size=12).map(" ".join),
        min_size=2,
        max_size=12,
    )
)
def test_against_brute_force(texts: list[str]) -> None:
    found = find_duplicates(texts, DuplicatesConfig(near=0.5))
    truth = brute_force(texts, 0.5)
    same = {index: group[0] for group in found.exact for index in group}
    for first, second in combinations(range(len(texts)), 2):
        exact = texts[first].split() == texts[second].split()
        assert (same.get(first, first) == same.get(second, second)) == exact
    for pair in found.near:
        assert truth[pair.first, pair.second] == pytest.approx(pair.similarity, abs=1e-12)
    firsts = [index for index in range(len(texts)) if same.get(index, index) == index]
    listed = {(pair.first, pair.second) for pair in found.near}
    # At .8 a pair is proposed with a probability of 1 - 1e-28 at a threshold of .5.
    surely = {ends for ends, value in truth.items() if value >= 0.8 and set(ends) <= set(firsts)}
    assert surely <= listed


def test_near_can_be_switched_off() -> None:
    words = document(0)
    texts = [" ".join(words), " ".join(changed(words, 1)), " ".join(words)]
    assert find_duplicates(texts, DuplicatesConfig(near=None)).near == []
    assert find_duplicates(texts, OPTIONS).near == [NearPair(0, 1, similarity(1))]
    assert find_duplicates(texts, OPTIONS).exact == [[0, 2]]


def test_too_much_that_is_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(changed(document(0), 1)) + f" end{n}" for n in range(5)]
    assert len(find_duplicates(texts, OPTIONS).near) == 10
    for most in (3, 9):  # more than that in one band; or in all of them
        monkeypatch.setattr(duplicates, "_MOST_PAIRS", most)
        with pytest.raises(UserError, match=r"more than \d pairs of documents may be near duplicates"):
            find_duplicates(texts, OPTIONS)
    monkeypatch.setattr(duplicates, "_MOST_PAIRS", 10)
    assert len(find_duplicates(texts, OPTIONS).near) == 10


def test_among_what_is_kept() -> None:
    words = document(0)
    found = find_duplicates(
        [
            " ".join(words),
            " ".join(document(1)),
            " ".join(words),
            " ".join(changed(words, 1)),
            " ".join(words),
        ],
        OPTIONS,
    )
    assert found.exact == [[0, 2, 4]]
    assert [(pair.first, pair.second) for pair in found.near] == [(0, 3)]
    rest = found.among([1, 2, 3, 4])
    assert rest.exact == [[1, 3]]
    assert [(pair.first, pair.second) for pair in rest.near] == [(1, 2)]
    assert found.among([0, 1]).links() == []


@settings(deadline=None)
@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=12))
def test_clusters_are_what_is_linked(count: int, links: list[tuple[int, int]]) -> None:
    links = [(a, b) for a, b in links if a < count and b < count]
    reach = {n: {n} for n in range(count)}
    for _ in range(count):
        for a, b in links:
            reach[a] |= reach[b]
            reach[b] |= reach[a]
    found = clusters(count, links)
    for a, b in combinations(range(count), 2):
        assert (found[a] == found[b]) == (b in reach[a])
    assert list(dict.fromkeys(found)) == list(range(len(set(found))))


@pytest.mark.slow
def test_real_dialogues(shared_rows: Callable[[str, int], list[dict[str, Any]]]) -> None:
    """Of all 84 million pairs of 12,960 dialogues: those that the shingles themselves say are alike, no others."""
    rows = shared_rows("dialogsum.train.jsonl", 20_000) + shared_rows("dialogsum.validation.jsonl", 1_000)
    texts = [row["dialogue"] for row in rows]
    assert len(texts) == 12_960
    found = find_duplicates(texts, OPTIONS)
    truth = all_pairs(texts, 0.7)
    copies = {index: same[0] for same in found.exact for index in same}
    listed = {(pair.first, pair.second): pair.similarity for pair in found.near}
    expected = {ends: value for ends, value in truth.items() if all(copies.get(e, e) == e for e in ends)}
    for same in found.exact:
        assert all((same[0], other) in truth for other in same[1:])
    false = listed.keys() - expected.keys()
    missed = expected.keys() - listed.keys()
    print(f"{len(found.exact)} exact, {len(listed)} near, {len(false)} false, {len(missed)} missed")
    assert len(listed) > 100
    assert len(false) <= 0.01 * len(listed)
    assert len(missed) <= 0.01 * len(expected)
    for ends in listed.keys() & expected.keys():
        assert listed[ends] == pytest.approx(expected[ends], abs=1e-9)


def all_pairs(texts: list[str], threshold: float) -> dict[tuple[int, int], float]:
    """Jaccard of every pair of texts from the product of the incidence matrix with its transpose."""
    import numpy as np
    from scipy.sparse import csr_array

    numbers: dict[str, int] = {}
    columns, ends = [], [0]
    for text in texts:
        columns += [numbers.setdefault(one, len(numbers)) for one in sorted(shingles(text, 3))]
        ends.append(len(columns))
    incidence = csr_array(
        (np.ones(len(columns), dtype=np.int32), np.array(columns), np.array(ends)),
        shape=(len(texts), len(numbers)),
    )
    sizes = np.diff(ends)
    found = {}
    across = incidence.T.tocsr()
    for start in range(0, len(texts), 500):
        common = (incidence[start : start + 500] @ across).tocoo()
        first, second = common.row + start, common.col
        value = common.data / (sizes[first] + sizes[second] - common.data)
        for index in np.flatnonzero((first < second) & (value >= threshold)):
            found[int(first[index]), int(second[index])] = float(value[index])
    return found

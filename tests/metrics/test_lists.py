"""Lists against lists: by hand, and soft pairs by trying every way to pair."""

from __future__ import annotations

import random
from itertools import permutations

import pytest

from mlx_sumrl.metrics.lists import (
    Overlap,
    item_key,
    mean_pairwise_jaccard,
    normalised,
    overlap,
    soft_overlap,
)


def scores(found: Overlap) -> tuple[float, float, float, float]:
    return found.precision, found.recall, found.f1, found.jaccard


@pytest.mark.parametrize(
    ("said", "expected", "wanted"),
    [
        ("", "", (1, 1, 1, 1)),
        ("ab", "", (0, 0, 0, 0)),
        ("", "ab", (0, 0, 0, 0)),
        ("ab", "ab", (1, 1, 1, 1)),
        ("ba", "ab", (1, 1, 1, 1)),
        ("aab", "ab", (1, 1, 1, 1)),  # twice is once
        ("abcd", "ab", (1 / 2, 1, 2 / 3, 1 / 2)),
        ("a", "abc", (1, 1 / 3, 1 / 2, 1 / 3)),
        ("axy", "abcd", (1 / 3, 1 / 4, 2 / 7, 1 / 6)),
        ("x", "a", (0, 0, 0, 0)),
    ],
)
def test_by_hand(said: str, expected: str, wanted: tuple[float, ...]) -> None:
    found = overlap([*said], [*expected])
    assert scores(found) == pytest.approx(wanted)
    assert found.identical == (set(said) == set(expected))
    assert scores(soft_overlap([*said], [*expected], 1, lambda one, other: float(one == other))) == scores(
        found
    )


def test_a_list_that_is_not_there_agrees_with_nothing() -> None:
    assert scores(Overlap(0, 0, 0, one_missing=True)) == (0, 0, 0, 0)
    assert not Overlap(0, 0, 0, one_missing=True).identical
    assert Overlap(0, 0, 0).identical


def best_by_trying(alike: list[list[float]], threshold: float) -> int:
    """Most pairs that any way to pair gives; pads the shorter side with what is like nothing."""
    size = max(len(alike), len(alike[0]))
    padded = [
        [alike[i][j] if i < len(alike) and j < len(alike[0]) else -1.0 for j in range(size)]
        for i in range(size)
    ]
    return max(
        sum(padded[row][column] >= threshold for row, column in enumerate(order))
        for order in permutations(range(size))
    )


def test_soft_pairs_are_as_many_as_any_way_to_pair_gives() -> None:
    draw = random.Random(0)
    better_than_greedy = 0
    for _ in range(300):
        said, expected = draw.randint(1, 5), draw.randint(1, 5)
        alike = [[draw.choice((0.0, 0.3, 0.5, 0.7, 1.0)) for _ in range(expected)] for _ in range(said)]
        names = [str(i) for i in range(said)], [str(j) for j in range(expected)]
        found = soft_overlap(*names, 0.5, lambda i, j, alike=alike: alike[int(i)][int(j)])  # type: ignore[misc]
        assert found == Overlap(best_by_trying(alike, 0.5), said, expected)
        better_than_greedy += found.right > greedy(alike, 0.5)
    assert better_than_greedy > 10


def greedy(alike: list[list[float]], threshold: float) -> int:
    """The likest pair first."""
    pairs = sorted(((-one, i, j) for i, row in enumerate(alike) for j, one in enumerate(row)))
    rows: set[int] = set()
    columns: set[int] = set()
    for one, i, j in pairs:
        if -one >= threshold and i not in rows and j not in columns:
            rows.add(i)
            columns.add(j)
    return len(rows)


def test_one_item_is_in_one_pair() -> None:
    assert soft_overlap(["a", "b", "c"], ["x"], 0.5, lambda one, other: 1.0) == Overlap(1, 3, 1)
    # a takes x or y, b only x: a greedy choice of the likest pair leaves b alone
    alike = {"ax": 0.9, "ay": 0.6, "bx": 0.8, "by": 0.1}
    assert soft_overlap(["a", "b"], ["x", "y"], 0.5, lambda one, other: alike[one + other]).right == 2


def test_agreement_of_several() -> None:
    # {a,b} {a,c}: 1/3; {a,b} {a,b}: 1; {a,c} {a,b}: 1/3
    assert mean_pairwise_jaccard(["ab", "ac", "ba"]) == pytest.approx((1 / 3 + 1 + 1 / 3) / 3)
    assert mean_pairwise_jaccard([[], []]) == 1
    assert mean_pairwise_jaccard(["ab"]) is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (" Open  AI\n", "open ai"),
        ("OpenAI.", "openai"),
        ("«Straße»", "strasse"),
        ("ＡＩ Chip", "ai chip"),  # noqa: RUF001
        ("ﬁne", "fine"),
        ("e\u0301", "é"),
        ("C#", "c#"),
        ("C++", "c++"),
        ("10%", "10%"),
        ("A.I.", "a.i"),
        ("?!", "?!"),
        ("", ""),
    ],
)
def test_normalised(text: str, wanted: str) -> None:
    assert normalised(text) == wanted
    assert normalised(normalised(text)) == wanted


def test_keys() -> None:
    assert item_key({"a": 1, "b": [2.0]}) == item_key({"b": [2], "a": 1.0})
    assert len({item_key(one) for one in (1, "1", True, None, [1], "One", "one")}) == 7
    assert item_key({"A": [" One!"]}, "normalised") == item_key({"A": ["one"]}, "normalised")
    assert item_key({"A": 1}, "normalised") != item_key({"a": 1}, "normalised")  # names are no texts

"""How much of a list is in another, in any order. Never imports mlx.

Two empty lists agree: precision, recall, F1 and Jaccard are 1. Where one side alone is empty, all are 0, precision
too: having said nothing is no precision, and a list that is always empty earns nothing but its agreement on empties.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from mlx_sumrl.config.matching import Matching

_PART_OF_NAMES = frozenset("#%&@*")
"""Punctuation to Unicode, but `C#` is not `C`, nor `10%` 10."""
Similarity = Callable[[str, str], float]
"""(said, expected) -> [0, 1]."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Of one list with one reference, or of many added up."""

    right: int
    """Items that both have."""
    said: int
    """Distinct items of the answer."""
    expected: int
    """Distinct items of the reference."""
    one_missing: bool = False
    """One side has no list at all, not even an empty one: then nothing agrees."""

    @property
    def precision(self) -> float:
        """Share of what was said that is right."""
        return self._share(self.right, self.said)

    @property
    def recall(self) -> float:
        """Share of what was expected that was said."""
        return self._share(self.right, self.expected)

    @property
    def f1(self) -> float:
        """2 right / (said + expected)."""
        return self._share(2 * self.right, self.said + self.expected)

    @property
    def jaccard(self) -> float:
        """Items of both over items of either."""
        return self._share(self.right, self.said + self.expected - self.right)

    @property
    def identical(self) -> bool:
        """Whether all items of both are right."""
        return not self.one_missing and self.right == self.said == self.expected

    def _share(self, part: int, whole: int) -> float:
        if whole:
            return part / whole
        return float(not self.said and not self.expected and not self.one_missing)


def overlap(said: Collection[str], expected: Collection[str]) -> Overlap:
    """Of two lists of `item_key`s; an item that is there twice counts once."""
    said, expected = frozenset(said), frozenset(expected)
    return Overlap(len(said & expected), len(said), len(expected))


def soft_overlap(
    said: Sequence[str], expected: Sequence[str], threshold: float, similarity: Similarity
) -> Overlap:
    """Of two lists of free text: items that are like each other by at least `threshold`, paired one to one.

    As many pairs as there can be and, of those ways, the one with the largest sum of similarities (Hungarian
    algorithm): what a greedy choice takes away from a later item is found. An item that is there twice counts once.
    """
    said, expected = list(dict.fromkeys(said)), list(dict.fromkeys(expected))
    if not said or not expected:
        return Overlap(0, len(said), len(expected))
    alike = np.array([[similarity(one, other) for other in expected] for one in said])
    # A pair weighs more than all similarities together, so that one more pair is always worth having.
    weight = np.where(alike >= threshold, alike + min(alike.shape) + 1, 0)
    rows, columns = linear_sum_assignment(weight, maximize=True)
    right = int(np.count_nonzero(alike[rows, columns] >= threshold))
    return Overlap(right, len(said), len(expected))


def mean_pairwise_jaccard(lists: Sequence[Collection[str]]) -> float | None:
    """Mean Jaccard of every two of several answers to one question, lists of `item_key`s; None for fewer than two."""
    pairs = [overlap(one, other).jaccard for one, other in combinations(lists, 2)]
    return fmean(pairs) if pairs else None


def item_key(value: Any, matching: Matching = "exact") -> str:
    """The same text for what counts as the same value, whatever the order of its keys; `matching` is about texts."""
    return json.dumps(_plain(value, matching), sort_keys=True)


def normalised(text: str) -> str:
    """A text without differences of Unicode form (NFKC), case, white space, and punctuation at its ends."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    start, end = 0, len(folded)
    while start < end and _is_edge(folded[start]):
        start += 1
    while start < end and _is_edge(folded[end - 1]):
        end -= 1
    # Nothing but punctuation is kept as it is: "?" and "!" are not one item.
    return " ".join((folded[start:end] or folded).split())


def _is_edge(character: str) -> bool:
    punctuation = unicodedata.category(character).startswith("P") and character not in _PART_OF_NAMES
    return punctuation or character.isspace()


def _plain(value: Any, matching: Matching) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one, matching) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one, matching) for one in value]
    if isinstance(value, str) and matching == "normalised":
        return normalised(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value

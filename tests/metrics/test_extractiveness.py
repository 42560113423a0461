"""Coverage, density, novelty and compression: by hand, and by the paper's own algorithm on random texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_sumrl.metrics.distinct import distinct
from mlx_sumrl.metrics.extractiveness import (
    compression,
    coverage,
    density,
    extractiveness,
    fragment_lengths,
    novelty,
)

WORDS = st.lists(st.sampled_from("abcd"), max_size=30)


def fragments(summary: list[str], article: list[str]) -> list[list[str]]:
    """Figure 3 of Grusky et al. 2018, line by line."""
    found = []
    i = j = 0
    while i < len(summary):
        f: list[str] = []
        while j < len(article):
            if summary[i] == article[j]:
                i_, j_ = i, j
                while i_ < len(summary) and j_ < len(article) and summary[i_] == article[j_]:
                    i_, j_ = i_ + 1, j_ + 1
                if len(f) < i_ - i:
                    f = summary[i:i_]
                j = j_
            else:
                j += 1
        i, j = i + max(len(f), 1), 0
        if f:
            found.append(f)
    return found


def longest_fragments(summary: list[str], article: list[str]) -> list[int]:
    """What the figure is meant to find: from each place on, the longest run that is anywhere in the article."""
    lengths, i = [], 0
    inside = {tuple(article[a:b]) for a in range(len(article)) for b in range(a + 1, len(article) + 1)}
    while i < len(summary):
        longest = max(
            (n for n in range(1, len(summary) - i + 1) if tuple(summary[i : i + n]) in inside), default=0
        )
        lengths += [longest] * (longest > 0)
        i += max(longest, 1)
    return lengths


@given(WORDS, WORDS)
def test_fragments_by_the_definition(summary, article):
    assert fragment_lengths(summary, article) == longest_fragments(summary, article)


@given(st.lists(st.integers(0, 200), max_size=40), st.permutations(range(60)), st.integers(0, 60))
def test_fragments_by_the_papers_figure(summary, article, kept):
    # With every word once in the article, the figure's jump past a match can pass over no longer one.
    article = article[:kept]
    assert fragment_lengths(summary, article) == [len(one) for one in fragments(summary, article)]


@given(WORDS, WORDS)
def test_coverage_and_density_are_their_formulas(summary, article):
    found = extractiveness(" ".join(summary), " ".join(article))
    if not summary:
        assert found is None
        return
    lengths = longest_fragments(summary, article)
    assert found.coverage == pytest.approx(sum(lengths) / len(summary))
    assert found.density == pytest.approx(sum(length**2 for length in lengths) / len(summary))
    assert found.compression == pytest.approx(len(article) / len(summary))


def test_by_hand():
    document = "The cat sat on the mat, and the dog barked."  # 10 words
    text = "The dog sat on the mat!"  # the dog | sat on the mat
    assert coverage(text, document) == 1.0
    assert density(text, document) == pytest.approx((2**2 + 4**2) / 6)
    assert compression(text, document) == pytest.approx(10 / 6)
    assert novelty(text, document, 1) == 0.0
    assert novelty(text, document, 2) == pytest.approx(1 / 5)  # dog sat
    assert novelty(text, document, 3) == pytest.approx(2 / 4)  # the dog sat, dog sat on
    assert coverage("A bird sang", document) == density("A bird sang", document) == 0.0
    assert novelty("a bird", document, 3) is None
    assert coverage("...", document) is compression("", document) is novelty("", document, 1) is None
    with pytest.raises(ValueError, match="0-grams"):
        novelty(text, document, 0)


def test_chinese_counts_characters():
    assert coverage("北京有雨", "今天北京下雨") == pytest.approx(3 / 4)
    assert compression("北京有雨", "今天北京下雨") == pytest.approx(6 / 4)


def test_distinct():
    assert distinct(["a b a b"], 1) == pytest.approx(2 / 4)
    assert distinct(["a b a b"], 2) == pytest.approx(2 / 3)  # ab, ba, ab
    # Each answer by itself says nothing twice; together they do.
    assert distinct(["red fox", "Red fox"], 2) == 0.5
    assert distinct(["red"], 2) is None

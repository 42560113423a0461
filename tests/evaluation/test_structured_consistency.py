"""Agreement of several answers to one question, by hand."""

from __future__ import annotations

import pytest

from mlx_sumrl.config.matching import MatchingConfig
from mlx_sumrl.evaluation.structured_consistency import consistency
from mlx_sumrl.evaluation.structured_fields import FieldKind

KINDS: dict[str, FieldKind] = {"n": "number", "tags": "list", "who": "text"}


def test_by_hand() -> None:
    ids = ["p", "p", "q", "p", "q", "r", "s", "s"]
    answers = [
        {"n": 2, "tags": ["a", "b"], "who": "x"},
        {"n": 4, "tags": ["a", "c"], "who": "x"},
        {"n": 5, "tags": ["a", "b"], "who": "y"},
        {"n": 6, "tags": ["b", "a"], "who": "X"},
        {"n": 5.0, "tags": ["b", "a"], "who": "y"},
        {"n": 1, "tags": [], "who": "z"},
        None,
        {"n": 1, "tags": [], "who": "z"},
    ]
    found = consistency(ids, answers, KINDS, MatchingConfig())
    assert (found.ids, found.left_out, found.least, found.most) == (("p", "q"), 2, 2, 3)
    assert found.identical == 1 / 2
    number, tags, who = (found.fields[name] for name in KINDS)
    assert number.values == pytest.approx((2 / 4, 0))  # 2, 4, 6: spread 2, mean 4
    assert number.variation == pytest.approx(1 / 4)
    assert tags.values == pytest.approx(((1 / 3 + 1 + 1 / 3) / 3, 1))
    assert tags.jaccard == pytest.approx((5 / 9 + 1) / 2)
    assert who.values == (0, 1)
    assert (number.identical, tags.identical, who.identical) == (1 / 2, 1 / 2, 1 / 2)
    assert (number.jaccard, tags.variation, who.jaccard) == (None, None, None)
    same = consistency(ids, answers, {"who": "text"}, MatchingConfig(matching="normalised"))
    assert same.fields["who"].values == (1, 1)
    assert same.identical == 1


def test_a_field_that_is_left_out_once_is_not_the_same() -> None:
    found = consistency(["p", "p"], [{"n": 2}, {}], KINDS, MatchingConfig())
    assert found.fields["n"].identical == 0
    assert found.fields["n"].values == (None,)
    assert found.fields["who"].identical == 1
    assert found.fields["tags"].values == (None,)


def test_nothing_to_compare() -> None:
    found = consistency(["p", "q"], [{"n": 2}, {"n": 3}], KINDS, MatchingConfig())
    assert (found.ids, found.left_out, found.identical, found.fields) == ((), 2, None, {})

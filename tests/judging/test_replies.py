"""Replies: by hand what each says, and that nothing else ever gives a number."""

from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_sumrl.judging.replies import Verdict, digit_in, preference_in, scores_in

ALL = {"faithfulness": 5, "coverage": 1, "conciseness": 3, "clarity": 4}


def likely(**probabilities: float) -> list[tuple[str, float]]:
    return sorted(((token, math.log(p)) for token, p in probabilities.items()), key=lambda pair: -pair[1])


def verdict(text: str, *tokens: tuple[str | None, list[tuple[str, float]]]) -> tuple[float, float | None]:
    found = digit_in(text, tokens)
    assert found is not None
    return found.value, found.mass


class TestDigit:
    @pytest.mark.parametrize("text", ["4", " 4", "4\n", "\n 4 "])
    def test_as_written(self, text: str) -> None:
        assert digit_in(text, None) == Verdict(4.0, None)

    @pytest.mark.parametrize(
        "text",
        [
            *("", " ", "0", "6", "44", "4.", "4/5", "4.5", "Score: 4", "**4**", "four", "-4", "+4", "4 5"),
            *("4\n\nBecause it is good.", "{4}", '"4"', "\u0664", "\u2463", "4\u200b", "<think>4", "5\x00"),
        ],
    )
    def test_malformed(self, text: str) -> None:
        assert digit_in(text, None) is None
        assert digit_in(text, [("4", likely(**{"4": 0.9}))]) is None

    def test_weighed_by_probability(self) -> None:
        """(4 x .5 + 5 x .3 + 2 x .1) / .9, the rest on other tokens."""
        tokens = likely(**{"4": 0.5, "5": 0.3, "2": 0.1, "the": 0.1})
        value, mass = verdict("4", ("4", tokens))
        assert value == pytest.approx(3.7 / 0.9)
        assert mass == pytest.approx(0.9)

    def test_a_digit_with_and_without_a_space_is_one(self) -> None:
        """Tokenizers have several tokens for it; some servers show them raw."""
        tokens = likely(**{" 3": 0.2, "3": 0.2, "\u01203": 0.1, "\u25813": 0.1, "1": 0.3, "33": 0.05})
        value, mass = verdict("1", ("1", tokens))
        assert (value, mass) == (pytest.approx((3 * 0.6 + 1 * 0.3) / 0.9), pytest.approx(0.9))

    def test_the_token_that_wrote_it(self) -> None:
        space = likely(**{" ": 0.6, "5": 0.4})
        digit = likely(**{"2": 0.75, "1": 0.25})
        end = likely(**{"</s>": 0.99, "5": 0.01})
        assert verdict(" 2", (" ", space), ("2", digit), ("</s>", end)) == (1.75, pytest.approx(1))
        # A server that names another token than the one drawn.
        assert verdict(" 2", (" ", space), ("1", digit), ("2", end)) == (1.75, pytest.approx(1))

    def test_drawn_though_not_the_likeliest(self) -> None:
        tokens = likely(**{"5": 0.6, "2": 0.4})
        assert verdict("2", ("2", tokens)) == (pytest.approx(3.8), pytest.approx(1))

    def test_no_use_of_what_cannot_be_placed(self) -> None:
        tokens = likely(**{"5": 0.6, "4": 0.4})
        assert verdict("2", ("5", tokens)) == (2, None)
        assert verdict("2", ("2", likely(x=1.0))) == (2, None)
        assert verdict("2", (None, [])) == (2, None)
        assert verdict("2", ("2", [("2", -1e6)])) == (2, None)

    def test_after_a_thought_as_written(self) -> None:
        tokens = ("5", likely(**{"5": 0.5, "4": 0.5}))
        assert verdict("<think>A 4? No.</think>\n5", tokens) == (5, None)
        assert verdict("<think>\n\n</think>\n5", tokens) == (4.5, pytest.approx(1))

    @given(st.text() | st.from_regex(r"\s*[0-9a-z\"{}:]{0,3}\s*", fullmatch=True))
    def test_a_number_only_from_a_lone_digit(self, text: str) -> None:
        found = digit_in(text, None)
        alone = re.fullmatch(r"[1-5]", text.rpartition("</think>")[2].strip())
        assert (found is not None) == (alone is not None)


class TestJson:
    def test_whole(self) -> None:
        found = scores_in(json.dumps(ALL))
        assert found is not None
        assert {name: one.value for name, one in found.items()} == ALL
        assert scores_in(f"```json\n{json.dumps(ALL, indent=1)}\n```\n") == found
        assert scores_in(f"<think>Well {{}}</think>{json.dumps(ALL)}") == found

    @pytest.mark.parametrize(
        "text",
        [
            *("", "5", "[]", "null", json.dumps({**ALL, "clarity": 6}), json.dumps({**ALL, "clarity": 0})),
            *(json.dumps({**ALL, "clarity": True}), json.dumps({**ALL, "clarity": "4"})),
            *(json.dumps({**ALL, "clarity": 4.0}), json.dumps({**ALL, "more": 4}), json.dumps([ALL])),
            *(json.dumps(dict(list(ALL.items())[:3])), f"Here: {json.dumps(ALL)}", json.dumps(ALL) * 2),
            *(json.dumps(ALL)[:-1], json.dumps(ALL)[:-1] + ', "clarity": 5}', "{" * 100_000),
            *(f"```json\n{json.dumps(ALL)}\n```\nDone.", json.dumps({**ALL, "clarity": [4]})),
            json.dumps({**ALL, "clarity": None}).replace("null", "NaN"),
        ],
    )
    def test_malformed(self, text: str) -> None:
        assert scores_in(text) is None


@pytest.mark.parametrize(
    ("text", "preferred"),
    [("A", "A"), (" B\n", "B"), ("TIE", "tie"), ("<think>B?</think>A", "A")]
    + [(one, None) for one in ("", "a", "Tie", "A.", "A B", "Summary A", "C", "AB", "<think>A")],
)
def test_preference(text: str, preferred: str | None) -> None:
    assert preference_in(text) == preferred

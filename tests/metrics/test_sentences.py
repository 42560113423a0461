"""Where sentences end, case by case."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_sumrl.metrics.sentences import sentences


@pytest.mark.parametrize(
    "expected",
    [
        ["He left.", "She stayed!", "Why?", "Nobody knows..."],
        ["Dr. Smith met J. R. Tolkien at 5 p.m. in the U.S. Senate.", "He left."],
        ["It cost $3.5 million.", "12 people came, e.g. Anna and Prof. Li."],
        ["She works for Apple Inc. in Cupertino.", "See Fig. 3."],
        ["He came at 5 p.m.", "The door was shut."],
        ['"Go!" she said.', "“Why?”", "He did not know."],
        ["No. 5 is alive.", "No.", "The end."],
        ["1. Buy milk.", "2. Call Ann."],
        ["It ends (or so he said.)", "Then it went on."],
        ["version 2.0.1 is out. it is fast"],
        ["Él llegó.", "¿Por qué?", "Élise lo sabe."],
        ["Он ушёл.", "Она осталась."],
    ],
)
def test_on_one_line(expected):
    assert sentences(" ".join(expected)) == expected


def test_chinese_and_japanese_need_no_space():
    assert sentences("他说：“好。”然后走了！真的吗？是") == ["他说：“好。”", "然后走了！", "真的吗？", "是"]  # noqa: RUF001
    assert sentences("雨が降った。「本当？」と聞いた。") == ["雨が降った。", "「本当？」", "と聞いた。"]  # noqa: RUF001


def test_a_line_ends_a_sentence():
    assert sentences("- buy milk\n\n  - call Ann \r\nmr.\n") == ["- buy milk", "- call Ann", "mr."]
    assert sentences(" \n ") == sentences("") == []


@given(st.text(st.sampled_from("aB1 .!?。”\"'\n…Mr"), max_size=60))
def test_nothing_but_space_is_lost(text):
    found = sentences(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(one and one == one.strip() for one in found)

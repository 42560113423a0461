"""Words, characters and bullets: by hand, and by other means on real Chinese and English rows."""
# ruff: noqa: RUF001 - other scripts are what is tested

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_sumrl.data.text_length import bullet_texts, bullets, characters, sentences, text_length, words

Rows = Callable[[str, int], list[dict[str, Any]]]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        (" \n ", 0),
        ("The cat sat.", 3),
        ("a well-known fact — 3.5% of it", 6),
        ("don't ... stop !", 2),
        ("今天北京有雨。", 6),
        ("iPhone15发布", 3),
        ("東京タワー", 5),
        ("한국어 요약", 2),
        ("Это краткое изложение.", 3),
        ("cafe\u0301 か\u3099", 2),
    ],
)
def test_words(text: str, count: int) -> None:
    assert words(text) == text_length(text, "words") == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("  ab  c\n\n d ", 6),
        ("a\r\nb", 3),
        ("今天北京有雨。", 7),
        ("cafe\u0301", 4),
        ("か\u3099", 1),
        ("👩‍👩‍👧 🇫🇷 👍🏽", 5),  # a family, a flag, a thumb of a colour; two spaces
        ("ab\u200b\u00adc\ufeff", 3),  # nobody sees these
        ("한", 1),
        ("\u1112\u1161\u11ab", 1),  # the same, as three jamo
        ("ที่นี่", 2),
    ],
)
def test_characters(text: str, count: int) -> None:
    assert characters(text) == text_length(text, "characters") == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("no bullet - not here\nnor-here", 0),
        ("- one\n- two\n  * and below", 3),
        ("Points:\n• one\n•two\n\n– three", 3),
        ("1. one\n2) two\n(3) three\n10. ten", 4),
        ("一共三点：\n1、增长\n2．就业\n3.通胀", 3),
        ("-5 degrees\n3.5 per cent\n1984. That year", 0),
        ("- \n---\n* * *\n-", 0),
    ],
)
def test_bullets(text: str, count: int) -> None:
    assert bullets(text) == text_length(text, "bullets") == count


def test_tokens_are_no_length_of_a_text() -> None:
    with pytest.raises(ValueError, match="token ids"):
        text_length("a", "tokens")


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf"]), max_size=40))
def test_the_encoding_and_the_space_around_do_not_matter(text: str) -> None:
    for count in (words, characters):
        composed = count(unicodedata.normalize("NFC", text))
        assert count(unicodedata.normalize("NFD", text)) == count(f" \n{text}\t ") == composed


def test_characters_of_real_rows(shared_rows: Rows) -> None:
    """Chinese has no clusters of several characters once it is composed: Python's len is the truth."""
    rows = shared_rows("lcsts.sample.jsonl", 500)
    seen = 0
    for text in (text for row in rows for text in (row["document"], row["summary"])):
        one_spaced = " ".join(unicodedata.normalize("NFC", text).split())
        if any(unicodedata.category(c)[0] in "CM" for c in one_spaced):
            continue
        seen += 1
        assert characters(text) == len(one_spaced)
    assert seen >= 990


def test_words_of_real_rows(shared_rows: Rows) -> None:
    for row in shared_rows("dialogsum.train.jsonl", 200):
        expected = [word for word in row["summary"].split() if any(map(str.isalnum, word))]
        assert words(row["summary"]) == len(expected)
    for row in shared_rows("lcsts.sample.jsonl", 200):
        han = sum("CJK UNIFIED" in unicodedata.name(c, "") for c in row["summary"])
        spaced = "".join(" " if "CJK UNIFIED" in unicodedata.name(c, "") else c for c in row["summary"])
        others = [piece for piece in spaced.split() if any(map(str.isalnum, piece))]
        assert words(row["summary"]) == han + len(others)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        (" \n ... \n!", 0),
        ("One", 1),
        ("One. Two! Three?", 3),
        ("Dr. Who met U.S. troops at 3.5 p.m. He left.", 2),
        ("A title\nA sentence. Another one", 3),
        ("他来了。她走了！", 2),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert sentences(text) == text_length(text, "sentences") == count
    assert sentences(f"\n {unicodedata.normalize('NFD', text)} ") == count


def test_what_stands_in_bullets() -> None:
    assert bullet_texts("Intro:\n- one two\n  2) three\n- \n* **four**\nend") == [
        "one two",
        "three",
        "**four**",
    ]

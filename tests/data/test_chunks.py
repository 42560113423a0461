"""Chunks of a long text: nothing is lost, nothing is too long, and cuts are where a reader would make them."""
# ruff: noqa: RUF001 - other scripts are what is tested

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_sumrl.data.chunks import chunk_spans
from mlx_sumrl.data.encoding import Span, encode

from .made_tokenizers import byte_tokenizer

BYTES = byte_tokenizer()
TEXTS = st.one_of(
    st.text(max_size=120),
    st.text(st.sampled_from("ab. \n中文。！é😀"), max_size=160),
    st.lists(st.sampled_from(["A cat sat. ", "今天有雨。", "Why?\n\n", "\n", "Dr. No ", "——", " " * 9])).map(
        "".join
    ),
)


def by_character(text: str) -> list[Span]:
    return [(i, i + 1) for i in range(len(text))]


def held(tokens: list[Span], start: int, end: int) -> int:
    """Tokens of which a chunk has a part, counted one by one."""
    return sum(a < b and a < end and b > start for a, b in tokens)


@given(TEXTS, st.integers(4, 40), st.floats(0, 0.5))
def test_no_text_is_lost_and_no_chunk_too_long(text: str, longest: int, share: float) -> None:
    tokens = list(encode(BYTES, text, [(0, len(text))]).spans)
    overlap = int(longest * share)
    spans = chunk_spans(text, tokens, longest, overlap)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
    for (start, end), (next_start, next_end) in pairwise(spans):
        assert start < next_start <= end < next_end
        assert next_start == end or held(tokens, next_start, end) <= overlap
    assert all(held(tokens, *span) <= longest for span in spans)
    # The text again, from the chunks alone.
    again, done = "", 0
    for start, end in spans:
        again, done = again + text[max(start, done) : end], end
    assert again == text


def test_what_fits_is_one_chunk() -> None:
    assert chunk_spans("abc", by_character("abc"), 3, 1) == [(0, 3)]
    assert chunk_spans("", [], 3, 1) == [(0, 0)]


def test_cuts_are_between_sentences() -> None:
    text = "One is here. Two is there. Three is away. Four is home. Five is lost. Six is found."
    spans = chunk_spans(text, by_character(text), 45, 16)
    pieces = [text[a:b] for a, b in spans]
    assert pieces == [
        "One is here. Two is there. Three is away. ",
        "Three is away. Four is home. ",
        "Four is home. Five is lost. Six is found.",
    ]
    # Without an overlap each begins where the one before ends.
    alone = chunk_spans(text, by_character(text), 45, 0)
    assert "".join(text[a:b] for a, b in alone) == text
    assert all(text[:a].endswith(". ") for a, _ in alone[1:])


def test_a_paragraph_is_the_better_place() -> None:
    text = "Aa aa aa aa aa.\n\nBb. Cc cc cc."
    # Both the paragraph's end (17) and that of a sentence (21) are in the last quarter of 22 characters.
    assert chunk_spans(text, by_character(text), 22, 0) == [(0, 17), (17, 30)]


def test_chinese_sentences_and_turns_of_a_conversation() -> None:
    text = "今天北京有雨。明天会晴。后天刮风，气温下降。“真的？”他说。"
    pieces = [text[a:b] for a, b in chunk_spans(text, by_character(text), 13, 0)]
    assert pieces[0] == "今天北京有雨。明天会晴。"
    assert "".join(pieces) == text
    talk = "Ann: hi there\nBob: hello you\nAnn: where to\nBob: just home"
    assert all(
        talk[a:b].startswith(("Ann:", "Bob:")) for a, b in chunk_spans(talk, by_character(talk), 30, 0)
    )


def test_no_place_but_between_tokens() -> None:
    text = "x" * 100
    spans = chunk_spans(text, by_character(text), 40, 10)
    assert len(spans) == 3
    lengths = [end - start for start, end in spans]
    assert max(lengths) <= 41
    assert max(lengths) - min(lengths) <= 10, "as many as needed, and about as long as each other"


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="cannot overlap by 4"):
        chunk_spans("abc", by_character("abc"), 4, 4)
    with pytest.raises(ValueError, match="character at 1 is written in more than 3 tokens"):
        chunk_spans("a😀", [(0, 1), *[(1, 2)] * 4], 3, 0)


@pytest.mark.parametrize(("file", "column"), [("scitldr.train", "document"), ("lcsts.sample", "document")])
def test_real_texts(
    summarizer: Any, shared_rows: Callable[[str, int], list[dict[str, Any]]], file: str, column: str
) -> None:
    text = "\n\n".join(row[column] for row in shared_rows(f"{file}.jsonl", 40))
    tokens = list(encode(summarizer, text, [(0, len(text))]).spans)
    spans = chunk_spans(text, tokens, 300, 30)
    assert (spans[0][0], spans[-1][1]) == (0, len(text))
    assert all(b >= c > a for (a, b), (c, _) in pairwise(spans))
    assert max(held(tokens, *span) for span in spans) <= 300
    starts = [text[:a].rstrip()[-1] for a, _ in spans[1:]]
    ends = sum(
        mark in ".!?。！？；…”)" or text[:a].endswith("\n")
        for mark, (a, _) in zip(starts, spans[1:], strict=True)
    )
    assert ends >= 0.9 * len(starts), "nearly all begin with a sentence"

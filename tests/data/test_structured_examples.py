"""Rows whose reference is JSON: asked exactly as supervised training asks them, and counted where they are unusable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlx_sumrl.config import DataConfig
from mlx_sumrl.data.answer_schema import AnswerSchema, load_schema
from mlx_sumrl.data.sources import Row, Rows
from mlx_sumrl.data.structured_examples import load_conversations, load_structured
from mlx_sumrl.errors import UserError

from . import chats

NUMBER = AnswerSchema(
    "number", {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
)
ANYTHING = AnswerSchema("anything", {})
DATA = DataConfig(max_unusable_share=1, max_prompt_tokens=4000)


def rows(*conversations: Any) -> Rows:
    return Rows(
        "chats.jsonl",
        [Row(f"chats.jsonl:{n}", {"messages": one}) for n, one in enumerate(conversations, start=1)],
    )


def test_news_is_asked_as_it_is_learned(
    summarizer: Any, shared_rows: Callable[[str, int], list[dict[str, Any]]]
) -> None:
    """All 364 real rows: the shipped model fits their references, and prompts are those of training."""
    messages = [row["messages"] for row in shared_rows("news_tags.train.jsonl", 400)]
    assert len(messages) == 364
    learned = chats.load(summarizer, *messages)
    asked = load_structured(
        rows(*messages), DATA, "messages", load_schema("recipes.news_tags:NewsTags"), summarizer, 64
    )
    assert asked.report.used == asked.report.total == 364
    assert [one.prompt_ids for one in asked.examples] == [one.prompt_ids for one in learned.examples]
    assert [one.reference for one in asked.examples] == [one[-1]["content"] for one in messages]
    assert asked.examples[0].document == messages[0][0]["content"]
    assert asked.examples[0].prompt.endswith("<|im_start|>assistant\n")


def test_a_long_question_loses_its_end_whatever_the_answer(chatml: Any) -> None:
    question = "What number is it? " + "the cat sat on the mat " * 20
    short, long = (
        load_conversations(
            rows(chats.conversation("Hello", "Hi", question, answer, system="Be brief")),
            DATA.model_copy(update={"max_prompt_tokens": 80}),
            "messages",
            ANYTHING,
            chatml,
        )
        for answer in ('{"n": 1}', '{"n": 1' + "0" * 300 + "}")
    )
    [example] = short.examples
    assert len(example.prompt_ids) == 80
    assert example.prompt_ids == long.examples[0].prompt_ids
    text = chatml.decode(list(example.prompt_ids))
    assert text.startswith("<|im_start|>system\nBe brief<|im_end|>")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert "What number" in text
    whole = load_conversations(
        rows(chats.conversation("Hello", "Hi", question, '{"n": 1}', system="Be brief")),
        DATA,
        "messages",
        ANYTHING,
        chatml,
    )
    lost = len(whole.examples[0].prompt_ids) - 80
    assert (short.report.truncated, short.report.tokens_cut) == (1, lost)


def test_rows_that_cannot_be_used_are_counted(chatml: Any) -> None:
    made = load_structured(
        rows(
            chats.conversation("a", '{"n": 1}'),
            chats.conversation("b", "n is 1"),
            chats.conversation("c", '{"n": "1"}'),
            chats.conversation("d"),
            "no list",
        ),
        DATA,
        "messages",
        NUMBER,
        chatml,
        64,
    )
    assert [one.id for one in made.examples] == ["chats.jsonl:1"]
    assert made.report.unusable == {
        "the reference is not JSON": 1,
        "the reference does not meet the schema at $.n: '1' is not of type 'integer'": 1,
        "the last turn is not the assistant's": 1,
        "no list of messages in messages": 1,
    }
    with pytest.raises(UserError, match=r"1 of 2 rows of chats\.jsonl cannot be used.*is not JSON"):
        load_structured(
            rows(chats.conversation("a", '{"n": 1}'), chats.conversation("b", "n is 1")),
            DataConfig(),
            "messages",
            NUMBER,
            chatml,
            64,
        )


def test_documents_may_have_json_for_a_summary(chatml: Any) -> None:
    records = [{"document": "one", "summary": ' {"n": 1}\n'}, {"document": "two", "summary": "2"}]
    source = Rows(
        "posts.jsonl", [Row(f"posts.jsonl:{n}", record) for n, record in enumerate(records, start=1)]
    )
    made = load_structured(source, DATA, "messages", NUMBER, chatml, 64)
    assert [(one.document, one.reference) for one in made.examples] == [("one", '{"n": 1}')]
    assert sum(made.report.unusable.values()) == 1


def test_neither_conversations_nor_documents(chatml: Any) -> None:
    source = Rows("posts.jsonl", [Row("posts.jsonl:1", {"text": "x"})])
    with pytest.raises(
        UserError, match=r"no column 'document'.*conversations are read from a column 'messages'"
    ):
        load_structured(source, DATA, "messages", NUMBER, chatml, 64)
    with pytest.raises(UserError, match="has no rows"):
        load_structured(Rows("posts.jsonl", []), DATA, "messages", NUMBER, chatml, 64)

"""Rows -> supervised examples: the prompts of reinforcement, room for the answer, and an account of every row."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from mlx_sumrl.config import DataConfig, MaskingConfig
from mlx_sumrl.data.answers import answer_ids
from mlx_sumrl.data.examples import load_examples
from mlx_sumrl.data.sources import Row, Rows, read_rows
from mlx_sumrl.data.supervised import LoadedSupervised, load_supervised
from mlx_sumrl.errors import UserError

from .chat_templates import FAMILIES, family_tokenizer

GOOD = {"document": "the cat sat on the mat", "summary": " the cat sat \n"}
HEAD, TAIL = "<|im_start|>user\nSum up: ", "\nBriefly!<|im_end|>\n<|im_start|>assistant\n"


def rows(*records: dict[str, Any]) -> Rows:
    return Rows("posts.jsonl", [Row(f"posts.jsonl:{n}", record) for n, record in enumerate(records, start=1)])


def load(
    tokenizer: Any, source: Rows, longest: int = 512, data: DataConfig | None = None, **masking: Any
) -> LoadedSupervised:
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    options = data or DataConfig(instruction="Sum up: {document}\nBriefly!", max_unusable_share=1)
    return load_supervised(source, options, MaskingConfig(**masking), tokenizer, longest, stop, 64)


def chat(question: str, answer: str, *before: dict[str, str]) -> dict[str, Any]:
    asked = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": [*before, *asked]}


WORDS = (
    *("the", "cat", "sat", "on", "mat", "we", "summarize", "text", "end", "so.", "z", "{x}", "\n\n"),
    *("\u4e2d\u6587", "\U0001f600", "caf\u00e9", "<|im_end|>", "<|im_start|>user"),
)


def articles(count: int) -> list[dict[str, str]]:
    """Long documents with summaries, of words, characters of many tokens, and what looks like a template."""
    draw = random.Random(7)
    return [
        {
            "document": draw.choice(("", " ", "\n")).join(draw.choices(WORDS, k=draw.randrange(40, 120))),
            "summary": " ".join(draw.choices(WORDS, k=draw.randrange(1, 20))) + " so",
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize(("count", "as_conversations"), [(2000, False), (500, True)])
def test_long_articles(chatml: Any, count: int, as_conversations: bool) -> None:
    records = articles(count)
    if as_conversations:
        records = [chat(record["document"], record["summary"]) for record in records]
    longest, stop = 150, chatml.convert_tokens_to_ids("<|im_end|>")
    start = chatml.convert_tokens_to_ids("<|im_start|>")
    head = HEAD.removesuffix("Sum up: ") if as_conversations else HEAD
    tail = TAIL.removeprefix("\nBriefly!") if as_conversations else TAIL
    data = DataConfig(instruction="Sum up: {document}\nBriefly!", max_prompt_tokens=140, max_unusable_share=1)
    source = rows(*records)
    cut = load(chatml, source, longest, data, too_long="drop")
    whole = load(chatml, source, 10_000, data.model_copy(update={"max_prompt_tokens": 9_000}))
    by_id = {example.id: example for example in whole.examples}
    assert len(by_id) == count
    assert cut.report.used == cut.report.total - cut.report.unusable.get("the answer is too long", 0)
    assert cut.report.used > 0.75 * count
    assert cut.report.truncated > 0.7 * count
    for example in cut.examples:
        full = by_id[example.id]
        # The answer is whole, and so is the template.
        assert example.answer_ids == full.answer_ids
        assert len(example.prompt_ids) + len(example.answer_ids) <= longest
        assert [one for one in example.prompt_ids if one in (start, stop)] == [start, stop, start]
        decoded = chatml.decode(example.prompt_ids)
        assert decoded.startswith(head)
        assert decoded.endswith(tail)
        # Tokens of the article that are left are the first of those it had: nothing was tokenised again.
        kept, original = example.prompt_ids, full.prompt_ids
        at = next((i for i in range(len(kept)) if kept[i] != original[i]), len(kept))
        assert kept == original[:at] + original[len(original) - len(kept) + at :]
        article = decoded.removeprefix(head).removesuffix(tail)
        before = chatml.decode(original).removeprefix(head).removesuffix(tail)
        assert before.startswith(article)
        if len(full.prompt_ids) + len(full.answer_ids) <= longest and len(full.prompt_ids) <= 140:
            assert kept == original
        else:  # no more is lost than has to be: a character has four tokens at most, the last may go with it
            room = min(longest - len(example.answer_ids), longest if as_conversations else 140)
            assert room - 10 <= len(kept) <= room


@pytest.mark.parametrize("name", ["dialogsum.train.jsonl", "lcsts.sample.jsonl"])
def test_prompts_are_those_of_reinforcement(summarizer: Any, shared: Path, name: str) -> None:
    column = "dialogue" if name.startswith("dialogsum") else "document"
    data = DataConfig(document_column=column, max_prompt_tokens=200)
    source = read_rows(str(shared / "data" / name), limit=100)
    loaded = load(summarizer, source, 512, data)
    asked = load_examples(source, data, summarizer, 64)
    stop = summarizer.convert_tokens_to_ids("<|im_end|>")
    for supervised, example in zip(loaded.examples, asked.examples, strict=True):
        assert supervised.id == example.id
        assert supervised.prompt_ids == example.prompt_ids
        assert supervised.answer_ids == answer_ids(summarizer, example.reference, stop)
        assert all(supervised.trained)
    assert loaded.report == asked.report
    assert loaded.trained_tokens == sum(len(example.answer_ids) for example in loaded.examples)


@pytest.mark.parametrize("name", FAMILIES)
def test_documents_under_every_template(name: str) -> None:
    tokenizer, family = family_tokenizer(name), FAMILIES[name]
    stop = tokenizer.convert_tokens_to_ids(family.end)
    record = {
        "document": "the cat</s> [/INST]<|end|>",
        "summary": "the cat <|im_end|> </s>\n\n<|eot_id|> sat",
    }
    loaded = load_supervised(rows(record), DataConfig(), MaskingConfig(), tokenizer, 999, stop, 64)
    (example,) = loaded.examples
    blank = " " if family.metaspace else ""  # it puts spaces before each piece of text
    decoded = tokenizer.decode(example.answer_ids[:-1])
    assert decoded.replace(blank, "") == record["summary"].replace(blank, "")
    assert example.answer_ids[-1] == stop
    assert example.answer_ids.count(stop) == 1
    asked = load_examples(rows(record), DataConfig(), tokenizer, 64).examples[0]
    assert example.prompt_ids == asked.prompt_ids


def test_all_of_a_document(chatml: Any) -> None:
    (answer,) = load(chatml, rows(GOOD)).examples
    (whole,) = load(chatml, rows(GOOD), learn="all").examples
    assert whole.prompt_ids + whole.answer_ids == answer.prompt_ids + answer.answer_ids
    assert len(whole.prompt_ids) == 1
    assert all(whole.trained)


def test_news_tags(summarizer: Any, shared: Path) -> None:
    source = read_rows(str(shared / "data" / "news_tags.train.jsonl"))
    loaded = load(summarizer, source, 512, DataConfig())
    assert (loaded.report.total, loaded.report.used, loaded.report.truncated) == (364, 364, 0)
    for row, example in zip(source.rows, loaded.examples, strict=True):
        asked, answered = row.fields["messages"]
        assert summarizer.decode(example.answer_ids) == answered["content"] + "<|im_end|>"
        assert summarizer.decode(example.prompt_ids) == (
            f"<|im_start|>user\n{asked['content']}<|im_end|>\n<|im_start|>assistant\n"
        )
        assert len(example.prompt_ids) + len(example.answer_ids) <= 512
    assert {example.answer_ids[-1] for example in loaded.examples} == {2}


def test_the_longest_turn_of_the_user_is_cut(chatml: Any) -> None:
    first = [{"role": "user", "content": "z" * 50}, {"role": "assistant", "content": "y" * 60}]
    record = chat("x" * 30, "v" * 20, *first)
    (whole,) = load(chatml, rows(record), learn="assistant_turns").examples
    total = len(whole.prompt_ids) + len(whole.answer_ids)
    for lost in (0, 1, 49):
        loaded = load(chatml, rows(record), total - lost, learn="assistant_turns")
        (example,) = loaded.examples
        assert loaded.report.tokens_cut == lost
        assert example.answer_ids == whole.answer_ids
        assert example.trained == whole.trained
        decoded = chatml.decode(example.prompt_ids)
        assert decoded == f"<|im_start|>user\n{'z' * (50 - lost)}<|im_end|>\n<|im_start|>assistant\n"
    # The second turn is the longest: what is before it stays where it is.
    record = chat("x" * 70, "v" * 20, *first)
    (whole,) = load(chatml, rows(record), learn="assistant_turns").examples
    (example,) = load(
        chatml, rows(record), len(whole.prompt_ids) + len(whole.answer_ids) - 9, learn="assistant_turns"
    ).examples
    assert example.prompt_ids == whole.prompt_ids
    runs = [one for one, trained in zip(example.answer_ids, example.trained, strict=True) if trained]
    assert chatml.decode(runs) == f"{'y' * 60}<|im_end|>{'v' * 20}<|im_end|>"
    assert chatml.decode(example.answer_ids).count("x") == 61


@pytest.mark.parametrize("record", [{**GOOD, "summary": "z" * 90}, chat("the cat", "z" * 90)])
def test_answers_that_are_too_long(chatml: Any, record: dict[str, Any]) -> None:
    short = chat("the cat", "so") if "messages" in record else GOOD
    source = rows(short, record, short)
    with pytest.raises(UserError) as error:
        load(chatml, source, 100)
    for part in (
        "data.train: 1 of 3 rows of posts.jsonl have an answer that is too long",
        "that of row posts.jsonl:2 has 91 tokens, which leaves no room",
        " in an example of 100 tokens (sft.max_tokens, or what the model reads): raise that limit",
        "masking.too_long: drop",
    ):
        assert part in str(error.value)
    loaded = load(chatml, source, 100, too_long="drop")
    assert [example.id for example in loaded.examples] == ["posts.jsonl:1", "posts.jsonl:3"]
    assert loaded.report.unusable == {"the answer is too long": 1}
    # To drop them was asked for: a third of the rows is no reason to stop.
    strict = DataConfig(instruction="Sum up: {document}", max_unusable_share=0)
    assert load(chatml, source, 100, strict, too_long="drop").report.used == 2
    # With its end of turn it has 91 tokens.
    with pytest.raises(UserError, match=r"91 tokens.*max_answer_tokens \(90\)"):
        load(chatml, source, max_answer_tokens=90)
    assert load(chatml, source, max_answer_tokens=91).report.used == 3


def test_too_long_without_the_answer(chatml: Any) -> None:
    """The template, or the other turns, and not the answer."""
    system = {"role": "system", "content": "z" * 90}
    loaded = load(chatml, rows(chat("the cat", "so", system), chat("the cat", "so")), 100)
    assert loaded.report.unusable == {"the conversation does not fit even without its longest turn": 1}
    with pytest.raises(UserError, match=r"template alone.*raise data\.max_prompt_tokens \(20\)"):
        load(chatml, rows(GOOD), 100, DataConfig(max_prompt_tokens=20))


def test_every_row_is_accounted_for(chatml: Any) -> None:
    source = rows(
        GOOD,
        {**GOOD, "summary": " "},
        {**GOOD, "document": None},
        {**GOOD, "document": 7},
        {**GOOD, "summary": "\ud800"},
    )
    source.rows.append(Row("posts.jsonl:6", broken="the line is not JSON"))
    report = load(chatml, source).report
    assert report.unusable == {
        "empty reference": 1,
        "no document": 1,
        "the document is not text": 1,
        "the reference is not valid Unicode": 1,
        "the line is not JSON": 1,
    }
    assert (report.total, report.used) == (6, 1)
    with pytest.raises(UserError, match=r"data\.train: 5 of 6 rows .*max_unusable_share allows 5\.0%"):
        load(chatml, source, data=DataConfig())


def test_wrong_sources(chatml: Any) -> None:
    with pytest.raises(UserError, match=r"posts\.jsonl has no rows"):
        load(chatml, rows())
    with pytest.raises(UserError, match=r"1 of 1 rows .*1 x the line is not JSON"):
        load(chatml, Rows("posts.jsonl", [Row("posts.jsonl:1", broken="the line is not JSON")]))
    with pytest.raises(UserError) as error:
        load(chatml, rows({"message": [], "summary": "s"}))
    for part in ("no column 'document'", "message, summary", "'messages' (masking.messages_column)"):
        assert part in str(error.value)
    with pytest.raises(UserError, match=r"no column 'sumary' \(data\.reference_column\).*'summary'\?$"):
        load(chatml, rows(GOOD), data=DataConfig(reference_column="sumary"))
    with pytest.raises(UserError, match=r"no column 'name' \(data\.id_column\)"):
        load(chatml, rows(chat("q", "a")), data=DataConfig(id_column="name"))


def test_columns(chatml: Any) -> None:
    conversation = chat("q", "a")["messages"]
    (example,) = load(
        chatml,
        rows({"talk": conversation, "id": 7}),
        data=DataConfig(id_column="id"),
        messages_column="talk",
    ).examples
    assert example.id == "7"
    # A document is what the options name; what else a row holds does not matter then.
    (example,) = load(chatml, rows({**GOOD, "messages": conversation})).examples
    assert chatml.decode(example.answer_ids) == "the cat sat<|im_end|>"


def test_documents_and_conversations_in_one_source(chatml: Any) -> None:
    """As a prepared file of several sources has them; a .parquet file fills up with nulls."""
    null = {"document": None, "summary": None}
    source = rows(GOOD, chat("q", "a"), {**chat("q", "b"), **null}, {**GOOD, "messages": None}, null)
    loaded = load(chatml, source)
    answers = [chatml.decode(example.answer_ids).removesuffix("<|im_end|>") for example in loaded.examples]
    assert answers == ["the cat sat", "a", "b", "the cat sat"]
    assert loaded.report.unusable == {"no document": 1}

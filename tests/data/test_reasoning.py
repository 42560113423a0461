"""Where thoughts end, and which rows keep their trace."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mlx_sumrl.config import DataConfig, MaskingConfig, ReasoningConfig
from mlx_sumrl.data.reasoning import kept_traces, split_thought, with_thought
from mlx_sumrl.data.sources import Row, Rows
from mlx_sumrl.data.supervised import LoadedSupervised, load_supervised
from mlx_sumrl.errors import UserError

from .chat_templates import IM, QWEN2, QWEN3
from .made_tokenizers import byte_tokenizer, control


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>\nwhy\n</think>\n\nthe cat \n", "why", "the cat \n"),
        ("<think></think>the cat", "", "the cat"),
        (" the cat\n", "", " the cat\n"),  # without tags nothing changes
        ("why</think> the cat", "why", "the cat"),  # the prompt opened the thought
        ("<think>why", "why", ""),
        ("the cat <think>why", "the cat\nwhy", ""),
        ("<think>a</think>b<think>c</think>d", "a\nb\nc", "d"),
        ("<think>a</think>b<think>c", "a\nb\nc", ""),
        ("<think><think>a</think>b", "a", "b"),
        ("<think>a</think></think>b", "a", "b"),
        ("<think>a</think>", "a", ""),
        ("", "", ""),
        ("a < b > c <thinking> d", "", "a < b > c <thinking> d"),
    ],
)
def test_split(text: str, thought: str, answer: str) -> None:
    assert split_thought(text) == (thought, answer)


@settings(deadline=None)
@given(thought=st.text(max_size=20), answer=st.text(max_size=20))
def test_what_is_put_together_comes_apart(thought: str, answer: str) -> None:
    text, spans = with_thought(thought, answer)
    assert [text[a:b] for a, b in spans] == [thought, answer]
    assert split_thought(text) == (thought.strip(), answer.lstrip())


@pytest.mark.parametrize(
    ("rows", "share", "kept"), [(10, 0.6, 6), (5, 0.5, 3), (1, 0.6, 1), (0, 0.6, 0), (7, 0, 0), (7, 1, 7)]
)
def test_share_to_the_row(rows: int, share: float, kept: int) -> None:
    for seed in range(5):
        assert kept_traces(rows, share, seed).sum() == kept
        assert (kept_traces(rows, share, seed) == kept_traces(rows, share, seed)).all()


def test_every_row_may_be_drawn() -> None:
    often = sum(kept_traces(10, 0.6, seed).astype(int) for seed in range(500))
    assert min(often) > 250  # 300 expected of 500, standard deviation 11
    assert max(often) < 350


def thinking(template: str = QWEN2) -> Any:
    return byte_tokenizer(
        *map(control, IM),
        control("<think>", special=False),
        control("</think>", special=False),
        chat_template=template,
    )


TOKENIZER = thinking()
DOCUMENTS = [
    {"document": f"the cat {n}", "summary": f"<think>why {n} <|im_end|></think> cat {n} "} for n in range(20)
]


def load(records: list[dict[str, Any]], tokenizer: Any = TOKENIZER, **masking: Any) -> LoadedSupervised:
    rows = Rows("f", [Row(f"f:{n}", record) for n, record in enumerate(records)])
    data = DataConfig(system="Be brief.", instruction="{document}", max_unusable_share=1)
    return load_supervised(
        rows, data, MaskingConfig(**masking), tokenizer, 400, tokenizer.convert_tokens_to_ids(IM[1]), 64
    )


def as_messages(record: dict[str, str]) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": record["document"]},
            {"role": "assistant", "content": record["summary"]},
        ]
    }


@pytest.mark.parametrize("as_conversations", [False, True])
@pytest.mark.parametrize("share", [0.6, 0, 1])
def test_on_and_off(as_conversations: bool, share: float) -> None:
    without = [{"document": "d", "summary": "no trace"}] * 3
    records = [*DOCUMENTS[:10], *without, *DOCUMENTS[10:]]
    given = [as_messages(record) for record in records] if as_conversations else records
    loaded = load(given, reasoning=ReasoningConfig(share=share))
    tags = set(TOKENIZER.convert_tokens_to_ids(["<think>", "</think>"]))
    kept = []
    for record, example in zip(records, loaded.examples, strict=True):
        prompt, answer = TOKENIZER.decode(example.prompt_ids), TOKENIZER.decode(example.answer_ids)
        thought, text = split_thought(record["summary"])
        on = "<think>" in answer
        mode = "on" if on else "off"
        assert prompt == (
            f"<|im_start|>system\nBe brief.\n\nreasoning {mode}<|im_end|>\n"
            f"<|im_start|>user\n{record['document']}<|im_end|>\n<|im_start|>assistant\n"
        )
        trace = f"<think>\n{thought}\n</think>\n\n" if on else ""
        assert answer == f"{trace}{text.strip()}<|im_end|>"
        # The tags are the model's own tokens; what looks like one in a thought is not.
        assert len(tags.intersection(example.answer_ids)) == 2 * on
        assert list(example.answer_ids).count(example.answer_ids[-1]) == 1
        assert all(example.trained)
        if record not in without:
            kept.append(on)
        else:
            assert not on
    assert sum(kept) == loaded.traces_kept == int(20 * share + 0.5)
    assert (f", {sum(kept)} of them with their thoughts." in loaded.describe()) == bool(share)
    assert f"{loaded.trained_tokens} tokens of 23 rows are learned" in loaded.describe()


def test_seeds() -> None:
    def kept(seed: int) -> list[bool]:
        examples = load(DOCUMENTS, reasoning=ReasoningConfig(seed=seed)).examples
        return ["<think>" in TOKENIZER.decode(example.answer_ids) for example in examples]

    assert kept(0) == kept(0)
    assert kept(0) != kept(1)


@pytest.mark.parametrize("as_conversations", [False, True])
def test_a_thought_without_an_answer(as_conversations: bool) -> None:
    records = [
        *DOCUMENTS,
        {"document": "d", "summary": "<think>why"},
        {"document": "d", "summary": "<think></think>"},
    ]
    given = [as_messages(record) for record in records] if as_conversations else records
    loaded = load(given, reasoning={})
    assert loaded.report.unusable == {"nothing to learn: the thought has no answer after it": 2}
    assert sum("<think>" in TOKENIZER.decode(example.answer_ids) for example in loaded.examples) == 12


def test_a_template_that_knows_thoughts() -> None:
    """Qwen3's takes the thought apart and drops those of earlier answers: the last answer is whole all the same."""
    tokenizer = thinking(QWEN3)
    messages = [
        {"role": "user", "content": "q <think>"},
        {"role": "assistant", "content": "<think>old</think>no"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "<think>think</think>yes"},
    ]
    (example,) = load([{"messages": messages}], tokenizer, reasoning={"share": 1}).examples
    assert tokenizer.decode(example.answer_ids) == "<think>\nthink\n</think>\n\nyes<|im_end|>"
    open_id, close_id = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    assert {open_id, close_id}.isdisjoint(example.prompt_ids)  # the user's tag is spelled out
    assert [list(example.answer_ids).count(one) for one in (open_id, close_id)] == [1, 1]
    assert "old" not in tokenizer.decode(example.prompt_ids)
    with pytest.raises(UserError, match=r"says or thinks.*masking\.learn: answer"):
        load([{"messages": messages}], tokenizer, reasoning={"share": 1}, learn="assistant_turns")


@pytest.mark.parametrize("thinks", [True, False])
def test_conversations_are_asked_with_the_switch(thinks: bool) -> None:
    """Qwen3's writes an empty thought itself where thinking is off: nothing of it is learned."""
    switch = "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
    tokenizer = thinking(QWEN3.removesuffix("{% endif %}") + switch)
    rows = Rows("f", [Row("f:0", as_messages({"document": "q", "summary": "yes"}))])
    (example,) = load_supervised(
        rows,
        DataConfig(enable_thinking=thinks),
        MaskingConfig(),
        tokenizer,
        400,
        tokenizer.convert_tokens_to_ids(IM[1]),
        64,
    ).examples
    off = "<think>\n\n</think>\n\n"
    assert tokenizer.decode(example.prompt_ids).endswith("assistant\n" + off * (not thinks))
    assert tokenizer.decode(example.answer_ids) == off * thinks + "yes<|im_end|>"


def test_every_thought_of_a_conversation_where_the_template_keeps_them() -> None:
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "<think>a</think>no"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "<think>b</think>yes"},
    ]
    (example,) = load([{"messages": messages}], reasoning={"share": 1}, learn="assistant_turns").examples
    pairs = zip(example.answer_ids, example.trained, strict=True)
    assert TOKENIZER.decode([one for one, trained in pairs if trained]) == (
        "<think>\na\n</think>\n\nno<|im_end|><think>\nb\n</think>\n\nyes<|im_end|>"
    )


@pytest.mark.parametrize("as_conversations", [False, True])
def test_traces_that_nobody_asked_for(as_conversations: bool, chatml: Any) -> None:
    given = [as_messages(record) for record in DOCUMENTS] if as_conversations else DOCUMENTS
    with pytest.raises(UserError, match=r"row f:0.*<think>.*set masking\.reasoning"):
        load(given)
    # Without a token of its own the tag is text like any other.
    plain = byte_tokenizer(*map(control, IM), chat_template=QWEN2)
    (example, *_) = load(given, plain).examples
    assert (
        plain.decode(example.answer_ids)
        == DOCUMENTS[0]["summary"].strip("" if as_conversations else None) + "<|im_end|>"
    )


def test_nothing_to_think_about() -> None:
    plain = [{"document": "d", "summary": "no trace"}] * 3
    with pytest.raises(
        UserError, match=r"masking\.reasoning.*none of the 3 usable rows of f.*leave masking\.reasoning out"
    ):
        load(plain, reasoning={})
    (example, *_) = load(plain, reasoning={"share": 0}).examples
    assert "reasoning off" in TOKENIZER.decode(example.prompt_ids)


@pytest.mark.parametrize("as_conversations", [False, True])
def test_a_template_that_leaves_the_system_prompt_out(as_conversations: bool) -> None:
    tokenizer = thinking(QWEN2.replace("in messages %}", "in messages if message['role'] != 'system' %}"))
    given = [as_messages(record) for record in DOCUMENTS] if as_conversations else DOCUMENTS
    with pytest.raises(
        UserError, match=r"the system turn|masking\.reasoning says on or off in the system prompt"
    ):
        load(given, tokenizer, reasoning={})


def test_options() -> None:
    with pytest.raises(ValidationError, match=r"reasoning\.on and off are both 'same'"):
        ReasoningConfig(on="same", off=" same")
    with pytest.raises(ValidationError):
        ReasoningConfig(share=1.1)
    assert MaskingConfig(reasoning={}).reasoning == ReasoningConfig(share=0.6)  # type: ignore[arg-type]

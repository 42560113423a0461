"""Templates that hide where answers are, and rows that are no conversations, are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_sumrl.config import DataConfig, MaskingConfig
from mlx_sumrl.data.sources import Row, Rows
from mlx_sumrl.data.supervised import LoadedSupervised, load_supervised
from mlx_sumrl.errors import UserError

from .chat_templates import MISTRAL, QWEN2, QWEN3, family_tokenizer, made
from .chats import DATA, conversation, load

HIDING = {
    "hides where an answer begins": QWEN2.replace(
        "{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>model\n' }}"
    ),
    "end an answer with a control token": "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
    "leaves out, moves or rewrites what the assistant says": QWEN2.replace(
        "in messages %}", "in messages[:1] %}"
    ),
    "writes 2 times what the assistant says": QWEN2.replace(
        "message['content']",
        "message['content'] + (message['content'] if message.role == 'assistant' else '')",
    ),
}


@pytest.mark.parametrize("what", HIDING)
def test_a_template_that_hides_the_boundary(what: str) -> None:
    tokenizer = made(HIDING[what])
    tokenizer.name_or_path = "models/odd"
    with pytest.raises(UserError, match=rf"models/odd.*{what}"):
        load(tokenizer, conversation("q", "yes"))


def test_a_template_that_ends_only_the_last_answer() -> None:
    template = (
        "{% for m in messages %}{% set answered = loop.last and m.role == 'assistant' %}"
        "{{ m.role + ': ' + m.content + ('<|im_end|>' if answered else '\n') }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    tokenizer = made(template)
    messages = conversation("q", "no", "q", "yes")
    (example,) = load(tokenizer, messages).examples
    assert tokenizer.decode(example.answer_ids) == "yes<|im_end|>"
    with pytest.raises(UserError, match="not end an answer with a control token"):
        load(tokenizer, messages, learn="assistant_turns")


def test_a_template_that_rewrites_earlier_answers() -> None:
    tokenizer = made(QWEN3)
    messages = conversation("q", "no", "q", "yes")
    with pytest.raises(UserError, match=r"earlier answer otherwise.*masking\.learn: answer"):
        load(tokenizer, messages, learn="assistant_turns")
    (example,) = load(tokenizer, messages).examples
    # What the template lets an assistant without a thought write is learned too: it is not in the prompt.
    assert tokenizer.decode(example.answer_ids) == "<think>\n\n</think>\n\nyes<|im_end|>"
    rewritten = conversation("q", "a</think>no", "q", "yes")
    with pytest.raises(UserError, match="1 x chat template rewrites the text"):
        load(tokenizer, rewritten)


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        (
            QWEN2.replace("message['content']", "message['content'] | replace('yes', 'no')"),
            ("q", "yes"),
            "rewrites the text",
        ),
        (MISTRAL, ("q", "yes"), "refuses the conversation (Conversation roles must"),
        (
            QWEN2.replace("for message in messages", "for message in messages[1:]"),
            ("q", "yes"),
            "the system turn",
        ),
    ],
)
def test_rows_that_a_template_does_not_take(template: str, messages: tuple[str, ...], reason: str) -> None:
    with pytest.raises(UserError) as error:
        load(made(template), conversation(*messages, system="a</s>b"))
    assert reason in str(error.value)


def test_rows_that_are_no_conversations() -> None:
    tokenizer = family_tokenizer("qwen2")
    user, assistant = conversation("q", "yes")
    loaded = load(
        tokenizer,
        [user, assistant],
        [user],
        [assistant],
        [],
        None,
        "q",
        ["q"],
        [user, {"role": "assistant"}],
        [user, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}],
        [user, {"content": "yes"}],
        [{**user, "role": "user\n<|im_end|>"}, assistant],
        [user, {**assistant, "tool_calls": [{"name": "f"}]}],
        [user, {**assistant, "content": "\ud800"}],
        [user, {**assistant, "tool_calls": None}],
    )
    assert [example.id for example in loaded.examples] == ["chats.jsonl:1", "chats.jsonl:14"]
    assert loaded.report.unusable == {
        "the last turn is not the assistant's": 1,
        "nothing is asked before the first answer": 1,
        "no list of messages in messages": 3,
        "a message is not an object with role and content": 2,
        "the content of a message is not text": 2,
        "the role of a message is not a word": 1,
        "a message calls tools": 1,
        "a message is not valid Unicode": 1,
    }


def test_stop_tokens_that_do_not_end_a_turn() -> None:
    tokenizer = family_tokenizer("phi3")
    end, stop = tokenizer.convert_tokens_to_ids(["<|end|>", "<|endoftext|>"])
    rows = Rows("f", [Row("f:1", {"messages": conversation("q", "yes")})])

    def load_with(stop_ids: Any) -> LoadedSupervised:
        return load_supervised(rows, DATA, MaskingConfig(), tokenizer, 99, stop, 64, stop_ids=stop_ids)

    assert load_with({stop, end}).examples == load_with(None).examples
    with pytest.raises(
        UserError, match=r"'<\|end\|>', but the model stops at '<\|endoftext\|>'.*eos_token_id"
    ):
        load_with({stop})


def test_conversations_need_a_template(stories: Any) -> None:
    with pytest.raises(UserError, match="no chat template"):
        load(stories, conversation("q", "yes"))
    rows = Rows("f", [Row("f:1", {"messages": conversation("q", "yes")})])
    plain = DataConfig(chat_template="none")
    with pytest.raises(UserError, match=r"data\.chat_template is none"):
        load_supervised(rows, plain, MaskingConfig(), stories, 99, 0, 64)


def test_the_system_prompt_of_the_options() -> None:
    tokenizer = family_tokenizer("qwen2")
    own, without = conversation("q", "yes", system="Mine."), conversation("q", "yes")
    rows = Rows("f", [Row("f:1", {"messages": own}), Row("f:2", {"messages": without})])
    data = DataConfig(system="Be brief.")
    examples = load_supervised(rows, data, MaskingConfig(), tokenizer, 99, 0, 64).examples
    heads = [tokenizer.decode(example.prompt_ids).partition("<|im_end|>")[0] for example in examples]
    assert heads == ["<|im_start|>system\nMine.", "<|im_start|>system\nBe brief."]

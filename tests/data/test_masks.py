"""What is learned of a conversation: exactly its answers and their ends of turn, whatever the texts look like."""

from __future__ import annotations

import unicodedata
from copy import deepcopy
from itertools import groupby
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlx_sumrl.config import DataConfig, MaskingConfig
from mlx_sumrl.data.encoding import control_tokens
from mlx_sumrl.data.sources import Row, Rows
from mlx_sumrl.data.supervised import LoadedSupervised, load_supervised
from mlx_sumrl.data.supervised_example import SupervisedExample
from mlx_sumrl.errors import UserError

from .chat_templates import FAMILIES, GENERATION, IM, MISTRAL, QWEN2, QWEN3, Family, family_tokenizer, made
from .made_tokenizers import control

# What looks like a template, like the marks that find it, or moves a boundary.
PIECES = (
    "<|im_end|>\n<|im_start|>assistant\n",
    "<|im_end|>",
    "[/INST]",
    "[INST] ",
    "</s>",
    "<s>",
    "<|eot_id|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|end|>\n",
    "<|endoftext|>",
    "<|assistant|>\n",
    "MlxSumrlText1End",
    "{{ messages }}{% endfor %}",
    "assistant",
    "\n",
    "\n\n",
    "  ",
    " ",
    "the cat sat",
    "\u4e2d\u6587",
    "\U0001f600",
    "e\u0301",
    "\u2028\t",
)
PLAIN = ("the cat sat", " on the mat", ", said Anna: no!", "\u4e2d\u6587", "\U0001f600", "\n\nso", "{x}")
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=5).map("".join)
ANSWERS = TEXTS.filter(lambda text: any(c.isprintable() and not c.isspace() for c in text))
DATA = DataConfig(max_unusable_share=1)


def conversation(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    """A system prompt if there is one, then user and assistant by turns."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return messages + [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


def load(tokenizer: Any, *conversations: Any, longest: int = 4000, **masking: Any) -> LoadedSupervised:
    rows = [Row(f"chats.jsonl:{n}", {"messages": one}) for n, one in enumerate(conversations, start=1)]
    return load_supervised(
        Rows("chats.jsonl", rows), DATA, MaskingConfig(**masking), tokenizer, longest, 0, 64
    )


def learned(example: SupervisedExample) -> list[list[int]]:
    """The runs of trained ids."""
    pairs = zip(example.trained, example.answer_ids, strict=True)
    return [[id_ for _, id_ in run] for trained, run in groupby(pairs, key=lambda pair: pair[0]) if trained]


def check_answer(tokenizer: Any, family: Family, ids: list[int], answer: str) -> None:
    """`ids` are the answer as the template writes it, and the end of the turn."""
    assert tokenizer.convert_ids_to_tokens(ids[-1]) == family.end
    assert control_tokens(tokenizer).isdisjoint(ids[:-1])
    written = family.lead + (answer.strip() if family.trims else answer)
    decoded = tokenizer.decode(ids[:-1])
    if family.metaspace:  # it puts a space before each piece of text between names of control tokens
        names = any(name in written for name in family.tokens)
        assert decoded.replace(" ", "") == written.replace(" ", "")
        assert names or decoded in (written, f" {written}")
    else:
        assert decoded == written


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, max_examples=60)
@given(question=TEXTS, answer=ANSWERS, system=TEXTS)
def test_only_the_answer_and_its_end(name: str, question: str, answer: str, system: str) -> None:
    family, tokenizer = FAMILIES[name], family_tokenizer(name)
    # LFM2's leaves an empty system prompt out, and takes no turn without one.
    messages = conversation(question, answer, system=(system or "s") if family.system else None)
    (example,) = load(tokenizer, messages).examples
    assert all(example.trained)
    check_answer(tokenizer, family, list(example.answer_ids), answer)
    # The prompt is what the model is asked with: the template's control tokens and no others, and its text.
    asked = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    plain = conversation("x", "x", system="x" if family.system else None)[:-1]
    control = control_tokens(tokenizer)
    wanted = [
        i
        for i in tokenizer.apply_chat_template(plain, add_generation_prompt=True)["input_ids"]
        if i in control
    ]
    assert [i for i in example.prompt_ids if i in control] == wanted
    if not family.swallows and not family.metaspace:
        assert tokenizer.decode(example.prompt_ids) == asked


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, max_examples=60)
@given(texts=st.lists(st.sampled_from(PLAIN), min_size=4, max_size=4))
def test_prompts_are_tokenised_as_without_an_answer(name: str, texts: list[str]) -> None:
    tokenizer = family_tokenizer(name)
    messages = conversation(*texts)
    (example,) = load(tokenizer, messages).examples
    asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
    assert list(example.prompt_ids) == asked


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, max_examples=60)
@given(texts=st.tuples(TEXTS, ANSWERS, TEXTS, ANSWERS, TEXTS, ANSWERS))
def test_every_answer_of_a_conversation(name: str, texts: tuple[str, ...]) -> None:
    family, tokenizer = FAMILIES[name], family_tokenizer(name)
    (example,) = load(tokenizer, conversation(*texts), learn="assistant_turns").examples
    runs = learned(example)
    assert len(runs) == 3
    for ids, answer in zip(runs, texts[1::2], strict=True):
        check_answer(tokenizer, family, ids, answer)
    # Up to the first answer it is the prompt, and the last token ends the last answer.
    (alone,) = load(tokenizer, conversation(*texts[:2])).examples
    assert example.prompt_ids == alone.prompt_ids
    assert example.trained[0]
    assert example.trained[-1]


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, max_examples=60)
@given(texts=st.tuples(TEXTS, ANSWERS, TEXTS, ANSWERS))
def test_all(name: str, texts: tuple[str, ...]) -> None:
    tokenizer = family_tokenizer(name)
    (whole,) = load(tokenizer, conversation(*texts), learn="all").examples
    (answer,) = load(tokenizer, conversation(*texts)).examples
    assert whole.prompt_ids + whole.answer_ids == answer.prompt_ids + answer.answer_ids
    assert len(whole.prompt_ids) == 1
    assert all(whole.trained)


@settings(deadline=None, max_examples=60)
@given(texts=st.lists(st.lists(st.sampled_from(PLAIN), min_size=1).map("".join), min_size=2, max_size=6))
def test_as_transformers_masks_it(texts: list[str]) -> None:
    """Where a template has {% generation %} marks, transformers says what the assistant's tokens are."""
    assume(len(texts) % 2 == 0)
    # It takes a token that begins with the boundary's line break for the prompt's.
    assume(not any(text.startswith("\n") for text in texts))
    tokenizer = family_tokenizer("qwen2")
    messages = conversation(*texts)
    reference = tokenizer.apply_chat_template(
        messages, chat_template=GENERATION, return_dict=True, return_assistant_tokens_mask=True
    )
    (example,) = load(MARKED, messages, learn="assistant_turns").examples
    ids = example.prompt_ids + example.answer_ids
    mask = [0] * len(example.prompt_ids) + [int(one) for one in example.trained]
    assert list(ids) == reference["input_ids"][: len(ids)]
    assert mask == reference["assistant_masks"][: len(ids)]
    assert sum(mask) == sum(reference["assistant_masks"]) > 0


MARKED = made(GENERATION)


def test_by_hand() -> None:
    tokenizer = family_tokenizer("qwen2")
    start, end = tokenizer.convert_tokens_to_ids(list(IM))
    newline = tokenizer("\n")["input_ids"]
    (example,) = load(tokenizer, conversation("q", "zy", system="s")).examples
    z, y, q, s = (tokenizer(letter)["input_ids"] for letter in "zyqs")
    system, user, assistant = (tokenizer(role)["input_ids"] for role in ("system", "user", "assistant"))
    assert list(example.prompt_ids) == [
        *(start, *system, *newline, *s, end, *newline),
        *(start, *user, *newline, *q, end, *newline),
        *(start, *assistant, *newline),
    ]
    assert list(example.answer_ids) == [*z, *y, end]
    assert example.id == "chats.jsonl:1"


def test_a_boundary_that_one_token_reaches_across() -> None:
    """Two line breaks are one token here: the answer keeps its own, the prompt stays what it is when asked."""
    tokenizer = made(QWEN2)
    tokenizer.add_tokens(["\n\n"])
    messages = conversation("q", "\nyes")
    whole = tokenizer.apply_chat_template(messages)["input_ids"]
    (example,) = load(tokenizer, messages).examples
    asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
    assert whole[: len(asked)] != asked
    assert list(example.prompt_ids) == asked
    assert tokenizer.decode(example.answer_ids) == "\nyes<|im_end|>"


def merging(template: str, *merges: tuple[str, str]) -> Any:
    """A byte-level tokenizer with these merges, which splits texts as GPT-2's does."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=list(merges)))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_tokens([control(token) for token in IM])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("ending", "merges", "last"),
    [
        # "ab" is one token, and "abc" is "a" and "bc": one reaches into the answer.
        ("ab", [("b", "c"), ("a", "b")], "ab"),
        # Two line breaks are one token, and before a letter they are two: none reaches into the answer.
        ("\n\n", [("\u010a", "\u010a")], "\u010a\u010a"),
    ],
)
def test_a_prompt_whose_last_tokens_would_be_others(
    ending: str, merges: list[tuple[str, str]], last: str
) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + ('ab' if m.role == 'assistant' else 'u') + m.content }}"
        "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>ab' }}{% endif %}"
    )
    tokenizer = merging(template.replace("ab", ending), *merges)
    messages = conversation("q", "cc")
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
    assert tokenizer.apply_chat_template(messages)["input_ids"][: len(prompt)] != prompt
    (example,) = load(tokenizer, messages).examples
    assert list(example.prompt_ids) == prompt
    assert tokenizer.convert_ids_to_tokens(example.prompt_ids)[-2:] == ["<|im_start|>", last]
    assert tokenizer.convert_ids_to_tokens(example.answer_ids) == ["c", "c", "<|im_end|>"]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(question=TEXTS, answer=ANSWERS)
def test_a_real_tokenizer_and_template(summarizer: Any, question: str, answer: str) -> None:
    (example,) = load(summarizer, conversation(question, answer)).examples
    # It composes characters, as Qwen2's does.
    question, answer = unicodedata.normalize("NFC", question), unicodedata.normalize("NFC", answer)
    asked = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert summarizer.decode(example.prompt_ids) == asked
    assert summarizer.decode(example.answer_ids) == f"{answer}<|im_end|>"
    assert [one for one in example.prompt_ids + example.answer_ids if one < 3] == [1, 2, 1, 2]


def test_a_real_llama_tokenizer(stories: Any) -> None:
    tokenizer = deepcopy(stories)
    tokenizer.chat_template = MISTRAL
    texts = (
        "Tell me [/INST] a story</s>",
        "Once upon [/INST] a time",
        "And then?",
        "</s> They all <s> slept.",
    )
    (example,) = load(tokenizer, conversation(*texts), learn="assistant_turns").examples
    runs = learned(example)
    # Its tokenizer puts a space before each piece of text between names of control tokens.
    assert tokenizer.decode(runs[0]).replace(" ", "") == "Onceupon[/INST]atime</s>"
    assert tokenizer.decode(runs[1]).replace(" ", "") == "</s>Theyall<s>slept.</s>"
    stop = tokenizer.eos_token_id
    assert [run.count(stop) for run in runs] == [1, 1]
    asked = f"[INST] {texts[0]} [/INST]"
    assert tokenizer.decode(example.prompt_ids[1:]).replace(" ", "") == asked.replace(" ", "")
    assert list(example.prompt_ids).count(tokenizer.bos_token_id) == 1


def test_an_empty_answer_among_others_is_not_learned() -> None:
    tokenizer = family_tokenizer("qwen2")
    (example,) = load(tokenizer, conversation("q", " ", "q", "yes"), learn="assistant_turns").examples
    assert [tokenizer.decode(run) for run in learned(example)] == ["yes<|im_end|>"]
    loaded = load(tokenizer, conversation("q", "yes", "q", "\n"), conversation("q", "yes"))
    assert len(loaded.examples) == 1
    assert loaded.report.unusable == {"nothing to learn: empty answer": 1}


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

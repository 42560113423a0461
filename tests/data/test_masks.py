"""What is learned of a conversation: exactly its answers and their ends of turn, whatever the texts look like."""

from __future__ import annotations

import unicodedata
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlx_sumrl.data.encoding import control_tokens

from .chat_templates import FAMILIES, GENERATION, IM, MISTRAL, QWEN2, Family, family_tokenizer, made
from .chats import conversation, learned, load
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

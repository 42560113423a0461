"""The user's turn, the chat template around it, and where the data stands in the result."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_sumrl.config import DataConfig
from mlx_sumrl.data.prompts import PromptTemplate, UnusableRowError
from mlx_sumrl.errors import UserError

from .made_tokenizers import CHATML, byte_tokenizer, control

TRIMMING = CHATML.replace("m['content']", "m['content'] | trim")
REFUSING = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)
DROPPING = "{% for m in messages if m['role'] == 'user' %}" + CHATML.partition("%}")[2]


def template(config: DataConfig, chat_template: str | None = CHATML, *columns: str) -> PromptTemplate:
    tokenizer = byte_tokenizer(control("<|im_start|>"), control("<|im_end|>"), chat_template=chat_template)
    return PromptTemplate(config, tokenizer, columns or ("document", "summary"), "posts.jsonl")


def test_as_the_tokenizer_renders_it() -> None:
    config = DataConfig(
        system="Be brief.", instruction="{title}: in {target_length} tokens {{so}}\n{document}!"
    )
    made = template(config, CHATML, "document", "title")
    prompt = made.fill({"title": "T{document}"}, "a {title} {{x}} %s {0}", 64)
    turn = "T{document}: in 64 tokens {so}\na {title} {{x}} %s {0}!"
    assert prompt.text == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{turn}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert [prompt.text[a:b] for a, b in prompt.data] == ["T{document}", "a {title} {{x}} %s {0}"]
    assert prompt.document == prompt.data[1]


def test_the_unit_of_the_length() -> None:
    config = DataConfig(
        chat_template="none", instruction="{target_length} {length_unit} {{length_unit}}: {document}"
    )
    texts = [template(one).fill({}, "a", 9).text for one in (config, config.asking_in("words"))]
    assert texts == ["9 tokens {length_unit}: a", "9 words {length_unit}: a"]
    assert "in 9 bullets." in template(DataConfig().asking_in("bullets")).fill({}, "a", 9).text
    assert "in 9 tokens." in template(DataConfig()).fill({}, "a", 9).text


@pytest.mark.parametrize("chat_template", [CHATML, TRIMMING])
@pytest.mark.parametrize(
    "instruction", ["{document}", " \n{document} ", "{title}{document}", "a{document}\n\n"]
)
@given(
    document=st.text(st.sampled_from("ab \n{}<|>中"), max_size=12),
    title=st.text(st.sampled_from("ab \n"), max_size=3),
)
def test_spans(chat_template: str, instruction: str, document: str, title: str) -> None:
    config = DataConfig(instruction=instruction)
    prompt = PromptTemplate(config, TOKENIZERS[chat_template], ("document", "title"), "f").fill(
        {"title": title}, document, 64
    )
    turn = instruction.replace("{title}", title).replace("{document}", document)
    kept = turn.strip() if chat_template == TRIMMING else turn
    assert prompt.text == f"<|im_start|>user\n{kept}<|im_end|>\n<|im_start|>assistant\n"
    found = prompt.text[slice(*prompt.document)]
    # A trimming template may take spaces off the document, and nothing else.
    assert found == document or (chat_template == TRIMMING and found.strip() == document.strip())
    # It stands where it should: what is before it is the template, the instruction and the title.
    before = prompt.text[: prompt.document[0]].removeprefix("<|im_start|>user\n")
    assert before.strip() == instruction.partition("{document}")[0].replace("{title}", title).strip()


TOKENIZERS = {
    text: byte_tokenizer(control("<|im_start|>"), control("<|im_end|>"), chat_template=text)
    for text in (CHATML, TRIMMING)
}


def test_a_document_twice_in_the_text_is_found_where_it_was_put() -> None:
    prompt = template(DataConfig(instruction="user {document} user")).fill({}, "user", 64)
    assert prompt.document == (len("<|im_start|>user\nuser "), len("<|im_start|>user\nuser user"))


def test_plain_text() -> None:
    config = DataConfig(chat_template="none", instruction="Sum up: {document}\nSummary:", system="Be brief.")
    prompt = template(config, None).fill({}, "a cat", 64)
    assert prompt.text == "Be brief.\n\nSum up: a cat\nSummary:"
    assert prompt.text[slice(*prompt.document)] == "a cat"


def test_document_column_by_its_own_name() -> None:
    config = DataConfig(document_column="post", instruction="{document}")
    assert "a cat" in template(config, CHATML, "post").fill({"post": "a cat"}, "a cat", 64).text
    with pytest.raises(UserError, match="holds the document 2 times"):
        template(DataConfig(document_column="post", instruction="{document}{post}"), CHATML, "post")


def test_wrong_names() -> None:
    with pytest.raises(UserError) as error:
        template(DataConfig(instruction="{titel} {document}"), CHATML, "document", "title")
    for part in ("{titel}", "posts.jsonl", "document, title", "{{ and }}"):
        assert part in str(error.value)
    with pytest.raises(UserError, match="holds the document 0 times"):
        template(DataConfig(instruction="{{document}}"))


def test_no_chat_template() -> None:
    with pytest.raises(UserError, match=r"no chat template.*data\.chat_template: none"):
        template(DataConfig(), None)


@pytest.mark.parametrize(
    ("chat_template", "cause"), [(REFUSING + CHATML, "System role not supported"), (DROPPING, "")]
)
def test_system_prompt_is_never_lost(chat_template: str, cause: str) -> None:
    assert template(DataConfig(), chat_template)
    with pytest.raises(UserError, match=rf"{cause}.*leave out data\.system"):
        template(DataConfig(system="Be brief."), chat_template)


def test_templates_that_fail_or_repeat() -> None:
    with pytest.raises(UserError, match=r"fails \(nothing works\)"):
        template(DataConfig(), "{{ raise_exception('nothing works') }}")
    with pytest.raises(UserError, match="2 times"):
        template(DataConfig(), CHATML + CHATML)


def test_a_template_that_rewrites_the_text() -> None:
    made = template(
        DataConfig(instruction="{document}"),
        CHATML.replace("m['content']", "m['content'] | replace('a', 'b')"),
    )
    assert made.fill({}, "no such letter", 64)
    with pytest.raises(UnusableRowError, match="rewrites the text"):
        made.fill({}, "a cat", 64)


def test_a_row_without_a_column() -> None:
    made = template(DataConfig(instruction="{title} {document}"), CHATML, "document", "title")
    with pytest.raises(UnusableRowError, match="no title"):
        made.fill({"title": None}, "a cat", 64)


SWITCHED = CHATML.replace(
    "assistant\n'}}",
    "assistant\n'}}{% if enable_thinking is false %}{{'<think>\n\n</think>\n\n'}}{% endif %}",
)


@pytest.mark.parametrize(("thinks", "tail"), [(None, ""), (True, ""), (False, "<think>\n\n</think>\n\n")])
def test_a_template_that_can_switch_thoughts_off(thinks: bool | None, tail: str) -> None:
    config = DataConfig(instruction="{document}", enable_thinking=thinks)
    prompt = template(config, SWITCHED).fill({}, "a text", 64)
    assert prompt.text == f"<|im_start|>user\na text<|im_end|>\n<|im_start|>assistant\n{tail}"


@pytest.mark.parametrize("chat_template", ["model", "none"])
def test_a_template_that_cannot(chat_template: str) -> None:
    config = DataConfig.model_validate({"enable_thinking": False, "chat_template": chat_template})
    with pytest.raises(UserError, match=r"data\.enable_thinking is false.*leave it out"):
        template(config, CHATML)

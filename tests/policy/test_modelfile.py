"""Ollama's template, filled in as Go's text/template does it, against what the tokenizer's own template writes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mlx_sumrl.policy.modelfile import go_template, modelfile
from mlx_sumrl.policy.tiny import CHAT_TEMPLATE
from tests.families import tokenizer

PHI3 = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{'<|system|>\\n' + m['content'] + '<|end|>\\n'}}"
    "{% elif m['role'] == 'user' %}{{'<|user|>\\n' + m['content'] + '<|end|>\\n'}}"
    "{% elif m['role'] == 'assistant' %}{{'<|assistant|>\\n' + m['content'] + '<|end|>\\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set loop_messages = messages %}{% set system = '' %}{% endif %}"
    "{% for m in loop_messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + (system if loop.first else '') + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
QUESTION = "Sum this up: {{ braces }} and <|end|>."


class Templated:
    """A tokenizer with another chat template."""

    def __init__(self, template: str | None) -> None:
        self.chat_template = template
        self.bos_token, self.eos_token = None, tokenizer().eos_token

    def apply_chat_template(self, turns: list[dict[str, str]], **rest: Any) -> str:
        text: str = tokenizer().apply_chat_template(turns, chat_template=self.chat_template, **rest)
        return text


def filled(template: str, prompt: str, system: str = "", response: str = "") -> str:
    """What Go makes of the few things that our templates use: if, else, end and three fields, none nested."""
    branch = re.search(r"\{\{ if \.System \}\}(.*)\{\{ else \}\}(.*)\{\{ end \}\}", template, re.DOTALL)
    if branch:
        template = template.replace(branch.group(), branch.group(1 if system else 2))
    values = {"System": system, "Prompt": prompt, "Response": response}
    return re.sub(r"\{\{ \.(\w+) \}\}", lambda field: values[field.group(1)], template)


@pytest.mark.parametrize("system", ["", "Be brief."])
@pytest.mark.parametrize(
    "jinja", [CHAT_TEMPLATE, PHI3, LLAMA2, NO_SYSTEM], ids=["chatml", "phi3", "llama2", "no_system"]
)
def test_a_question_is_put_as_in_training(jinja: str, system: str) -> None:
    if jinja is NO_SYSTEM and system:
        assert ".System" not in go_template(Templated(jinja))
        return
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": QUESTION})
    truth = Templated(jinja).apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    before_answer, _ = go_template(Templated(jinja)).split("{{ .Response }}")
    assert filled(before_answer, QUESTION, system) == truth


@pytest.mark.parametrize("jinja", [CHAT_TEMPLATE, PHI3], ids=["chatml", "phi3"])
def test_an_answer_ends_as_in_training(jinja: str) -> None:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    again = [*turns, {"role": "user", "content": "R"}]
    truth = Templated(jinja).apply_chat_template(again, tokenize=False, add_generation_prompt=True)
    template = go_template(Templated(jinja))
    assert filled(template, "Q", response="A") + filled(template.split("{{ .Response }}")[0], "R") == truth


def test_without_a_template_the_text_is_the_prompt() -> None:
    said = modelfile(Templated(None), "m.gguf", "Be brief.", None)
    assert 'TEMPLATE """{{ .Prompt }}"""' in said
    assert "SYSTEM" not in said, "nothing would show it to the model"
    assert "num_ctx" not in said

"""Published chat templates, and small tokenizers with the control tokens that each of them writes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import processors

from .made_tokenizers import byte_tokenizer, control, metaspace_tokenizer

QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
    "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
LFM2 = (
    '{{- bos_token -}}{%- set system_prompt = "" -%}{%- if messages[0]["role"] == "system" -%}'
    '{%- set system_prompt = messages[0]["content"] -%}{%- set messages = messages[1:] -%}{%- endif -%}'
    '{%- if system_prompt -%}{{- "<|im_start|>system\n" + system_prompt + "<|im_end|>\n" -}}{%- endif -%}'
    '{%- for message in messages -%}{{- "<|im_start|>" + message["role"] + "\n" -}}'
    '{%- set content = message["content"] -%}{{- content + "<|im_end|>\n" -}}{%- endfor -%}'
    '{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\n" -}}{%- endif -%}'
)
_MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ANSWER + eos_token}}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
MISTRAL = _MISTRAL.replace("ANSWER", "message['content']")
MISTRAL_SPACED = _MISTRAL.replace("ANSWER", "' ' + message['content'] | trim")
# Qwen3's way with thoughts: the last answer has one, if an empty one; those before it lose theirs.
QWEN3 = (
    "{% for message in messages %}{% set content = message['content'] %}{% set reasoning = '' %}"
    "{% if message['role'] == 'assistant' and '</think>' in content %}"
    "{% set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\n' + reasoning + '\n</think>\n\n' }}{% endif %}{{ content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GENERATION = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n'}}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n'}}{% endif %}"
)
"""ChatML with the marks from which transformers makes its own mask."""

IM = ("<|im_start|>", "<|im_end|>")
HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
PHI = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>")


@dataclass(frozen=True)
class Family:
    """A chat template and what it does to an answer."""

    template: str
    tokens: tuple[str, ...]
    end: str
    """The end of a turn."""
    bos: str | None = None
    eos: str | None = None
    system: bool = True
    """Whether it takes a system prompt."""
    trims: bool = False
    lead: str = ""
    """Between the generation prompt and the answer."""
    swallows: bool = False
    """Control tokens take the white space after them along, as phi-3's do."""
    trims_offsets: bool = False
    """Offsets leave spaces out, as Llama 3's do."""
    metaspace: bool = False


FAMILIES = {
    "qwen2": Family(QWEN2, IM, IM[1]),
    "llama3": Family(
        LLAMA3, HEADERS, HEADERS[3], bos=HEADERS[0], eos=HEADERS[3], trims=True, trims_offsets=True
    ),
    "phi3": Family(PHI3, PHI, PHI[3], eos=PHI[4], swallows=True),
    "lfm2": Family(LFM2, ("<|startoftext|>", *IM), IM[1], bos="<|startoftext|>"),
    "mistral": Family(MISTRAL, ("<s>", "</s>"), "</s>", bos="<s>", eos="</s>", system=False),
    "mistral-control": Family(
        MISTRAL_SPACED,
        ("<s>", "</s>", "[INST]", "[/INST]"),
        "</s>",
        bos="<s>",
        eos="</s>",
        system=False,
        trims=True,
        lead=" ",
    ),
    "mistral-metaspace": Family(
        MISTRAL, ("<s>", "</s>"), "</s>", bos="<s>", eos="</s>", system=False, metaspace=True
    ),
}


@cache
def family_tokenizer(name: str) -> Any:
    """A byte-level tokenizer (or one with U+2581 for spaces) that knows a family's control tokens."""
    family = FAMILIES[name]
    if family.metaspace:
        tokenizer = metaspace_tokenizer()
        tokenizer.chat_template = family.template
    else:
        tokens = (control(token, rstrip=family.swallows) for token in family.tokens)
        tokenizer = byte_tokenizer(*tokens, chat_template=family.template)
    if family.trims_offsets:
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.bos_token, tokenizer.eos_token = family.bos, family.eos
    return tokenizer


def made(template: str, *tokens: str) -> Any:
    """A byte-level tokenizer with a template of a test's own."""
    return byte_tokenizer(*(control(token) for token in tokens or IM), chat_template=template)

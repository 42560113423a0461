"""Ollama's Modelfile beside a GGUF file: the chat template in Go's words, the stop tokens, the context.

The template is read off what the tokenizer's own makes of marked messages. It is right for one question and its
answer, with or without a system prompt, which is what is trained here.
"""

from __future__ import annotations

from typing import Any

SYSTEM, USER, ASSISTANT, NEXT = "MarkOfSystem", "MarkOfUser", "MarkOfAssistant", "MarkOfNext"
"""Marks that no template writes by itself."""


def modelfile(tokenizer: Any, gguf: str, system: str | None, context: int | None) -> str:
    """The text of a Modelfile for ``gguf``, a file beside it."""
    template = go_template(tokenizer)
    lines = [
        "# ollama create my-model -f Modelfile && ollama run my-model",
        f"FROM ./{gguf}",
        f'TEMPLATE """{template}"""',
    ]
    if system is not None and ".System" in template:
        lines.append(f'SYSTEM """{system}"""')
    if tokenizer.eos_token:
        lines.append(f'PARAMETER stop "{tokenizer.eos_token}"')
    if context is not None:
        lines.append(f"PARAMETER num_ctx {context}")
    return "\n".join([*lines, "PARAMETER temperature 0"]) + "\n"


def go_template(tokenizer: Any) -> str:
    """The tokenizer's chat template as a Go template; the bare text where there is none.

    A beginning-of-sequence token at its start is left out, since Ollama puts one there.
    """
    if not tokenizer.chat_template:
        return "{{ .Prompt }}"

    def rendered(*messages: tuple[str, str]) -> str:
        turns = [{"role": role, "content": text} for role, text in messages]
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return text.removeprefix(tokenizer.bos_token) if tokenizer.bos_token else text

    before, after = rendered(("user", USER)).split(USER)
    plain = f"{before}{{{{ .Prompt }}}}{after}"
    try:
        opening, rest = rendered(("system", SYSTEM), ("user", USER)).split(SYSTEM)
        between, closing = rest.split(USER)
        with_system = f"{opening}{{{{ .System }}}}{between}{{{{ .Prompt }}}}{closing}"
        question = f"{{{{ if .System }}}}{with_system}{{{{ else }}}}{plain}{{{{ end }}}}"
    except Exception:  # templates raise what they like where they know no system prompt
        question = plain
    return f"{question}{{{{ .Response }}}}{_end_of_answer(rendered, before) or tokenizer.eos_token or ''}"


def _end_of_answer(rendered: Any, before: str) -> str | None:
    """What follows an answer; None where the template does not say it apart from the next question's start."""
    try:
        whole = rendered(("user", USER), ("assistant", ASSISTANT), ("user", NEXT))
        between = str(whole.split(ASSISTANT)[1].split(NEXT)[0])
    except Exception:  # as above
        return None
    return between.removesuffix(before) if before and between.endswith(before) else None

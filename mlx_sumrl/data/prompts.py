"""The user's turn and the chat template around it: a row's columns -> the prompt as text.

Invariant: what comes from data is inserted once and never read as a template again, so braces and template
syntax in a document stay what they are; and the characters of every inserted value are known in the result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlx_sumrl.config import DEFAULT_LENGTH_UNIT, DataConfig
from mlx_sumrl.data.encoding import Span
from mlx_sumrl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PLACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
# Stands for the user's turn where the template's own text is looked for: no template knows the word.
_MARK = "MlxSumrlTurn"


class UnusableRowError(Exception):
    """A row that no prompt can be made of; its message is the reason that rows are counted under."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered prompt."""

    text: str
    document: Span
    """Where the document stands in it."""
    data: tuple[Span, ...]
    """Where columns stand in it, the document among them."""


class PromptTemplate:
    """`data.instruction`, `data.system` and the chat template, checked once and then filled row by row."""

    def __init__(
        self, config: DataConfig, tokenizer: PreTrainedTokenizerFast, columns: Sequence[str], source: str
    ) -> None:
        """`columns` are those that `source`, which errors name, has. A ``{length_unit}`` that nobody has written out
        is tokens.

        Raises:
            UserError: the instruction names a column that does not exist or does not hold the document once,
                the tokenizer has no chat template, or the template refuses or drops the system prompt.
        """
        self._config = config = config.asking_in(DEFAULT_LENGTH_UNIT)
        self._tokenizer = tokenizer
        self._parts = _parse(config, columns, source)
        self._switches = template_switches(config, tokenizer)
        self._head, self._tail = self._frame()

    def fill(self, fields: Mapping[str, Any], document: str, target_length: int) -> Prompt:
        """The prompt of one row.

        Raises:
            UnusableRowError: a column that the instruction names is missing in this row, or the chat
                template rewrites the text.
        """
        turn, document_span, data = "", (0, 0), []
        for text, place in self._parts:
            turn += text
            if place is None:
                continue
            if place == "target_length":
                turn += str(target_length)
                continue
            if place != "document" and fields.get(place) is None:
                raise UnusableRowError(f"no {place}, which the instruction names")
            value = document if place == "document" else str(fields[place])
            data.append((len(turn), len(turn) + len(value)))
            if place == "document":
                document_span = data[-1]
            turn += value
        rendered = self._render(turn)
        # Some templates trim a turn.
        for kept in (turn, turn.strip(), turn.lstrip(), turn.rstrip()):
            if rendered == self._head + kept + self._tail:
                shift = len(self._head) - turn.find(kept)
                last = len(self._head) + len(kept)

                def moved(span: Span, shift: int = shift, last: int = last) -> Span:
                    start, end = (min(max(at + shift, len(self._head)), last) for at in span)
                    return start, end

                return Prompt(rendered, moved(document_span), tuple(moved(span) for span in data))
        raise UnusableRowError("chat template rewrites the text")

    def _frame(self) -> tuple[str, str]:
        """What the chat template puts before and after the user's turn."""
        if self._config.chat_template == "none":
            return self._config.system + "\n\n" if self._config.system else "", ""
        name = self._tokenizer.name_or_path
        if not self._tokenizer.chat_template:
            raise UserError(
                f"the tokenizer of {name} has no chat template: set data.chat_template: none to give the "
                "instruction as plain text, or use a model that has one"
            )
        try:
            rendered = self._render(_MARK)
        except Exception as error:  # a template raises what jinja and its author like
            cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if self._config.system is not None:
                raise UserError(
                    f"the chat template of {name} refuses the system prompt ({cause}): "
                    "leave out data.system and say it in data.instruction"
                ) from error
            raise UserError(
                f"the chat template of {name} fails ({cause}): mend it, or set data.chat_template: none"
            ) from error
        head, mark, tail = rendered.partition(_MARK)
        if not mark or _MARK in tail:
            raise UserError(
                f"the chat template of {name} writes the user's turn {rendered.count(_MARK)} times instead "
                "of once: mend it, or set data.chat_template: none"
            )
        if self._config.system and self._config.system.strip() not in head + tail:
            raise UserError(
                f"the chat template of {name} leaves the system prompt out: leave out data.system and say it "
                "in data.instruction"
            )
        return head, tail

    def _render(self, turn: str) -> str:
        if self._config.chat_template == "none":
            return f"{self._head}{turn}"
        messages = [{"role": "system", "content": self._config.system}] if self._config.system else []
        messages.append({"role": "user", "content": turn})
        rendered = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self._switches
        )
        return str(rendered)


def template_switches(config: DataConfig, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """What the options give to the chat template beside the messages.

    Raises:
        UserError: the template does not have the switch.
    """
    if config.enable_thinking is None:
        return {}
    if config.chat_template == "none" or "enable_thinking" not in str(tokenizer.chat_template):
        raise UserError(
            f"data.enable_thinking is {str(config.enable_thinking).lower()}, but the chat template of "
            f"{tokenizer.name_or_path} has no such switch: leave it out"
        )
    return {"enable_thinking": config.enable_thinking}


def _parse(config: DataConfig, columns: Sequence[str], source: str) -> list[tuple[str, str | None]]:
    """The instruction as pieces of text, each with the name of what follows it."""
    parts: list[tuple[str, str | None]] = []
    text, end = "", 0
    for match in _PLACES.finditer(config.instruction):
        text += config.instruction[end : match.start()]
        end = match.end()
        if match[1] is None:
            text += match[0][0]
            continue
        place = "document" if match[1] == config.document_column else match[1]
        if place not in ("document", "target_length") and place not in columns:
            raise UserError(
                f"data.instruction names {{{place}}}, which is no column of {source} (its columns: "
                f"{', '.join(columns) or 'none'}; {{document}}, {{target_length}} and "
                f"{{length_unit}} are always there); "
                "correct the name, or write {{ and }} for braces"
            )
        parts.append((text, place))
        text = ""
    parts.append((text + config.instruction[end:], None))
    times = [place for _, place in parts].count("document")
    if times != 1:
        raise UserError(
            f"data.instruction holds the document {times} times: write {{document}} in it exactly once, "
            "in single braces"
        )
    return parts

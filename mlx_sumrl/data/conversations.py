"""A row's `messages` as turns: who says what, and what an assistant thought before it answered.

Invariant: a conversation has at least one turn before its last, its last turn is the assistant's, and every text
is valid Unicode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlx_sumrl.config import ReasoningConfig
from mlx_sumrl.data.prompts import UnusableRowError
from mlx_sumrl.data.reasoning import OPEN, split_thought, with_thought

ASSISTANT, SYSTEM, USER = "assistant", "system", "user"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message."""

    role: str
    text: str
    """What is said."""
    thought: str | None = None
    """What is thought before; None: the text is all there is, tags or not."""

    @property
    def content(self) -> str:
        """The message as a chat template is given it."""
        return self.text if self.thought is None else with_thought(self.thought, self.text)[0]


def conversation(fields: Mapping[str, Any], column: str) -> tuple[Turn, ...]:
    """The turns of one row.

    Raises:
        UnusableRowError: no list of {role, content}, content that is not text, tool calls, a last turn that is not
            the assistant's, or nothing before it.
    """
    messages = fields.get(column)
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UnusableRowError(f"no list of messages in {column}")
    turns = tuple(_turn(message) for message in messages)
    if turns[-1].role != ASSISTANT:
        raise UnusableRowError("the last turn is not the assistant's")
    if turns[0].role == ASSISTANT:
        raise UnusableRowError("nothing is asked before the first answer")
    return turns


def with_system(turns: Sequence[Turn], system: str | None) -> tuple[Turn, ...]:
    """The turns under `system`, where they have no system prompt of their own."""
    if not system or turns[0].role == SYSTEM:
        return tuple(turns)
    return (Turn(SYSTEM, system), *turns)


def with_reasoning(
    turns: Sequence[Turn], options: ReasoningConfig, keep: bool, each: bool
) -> tuple[Turn, ...]:
    """The turns under "reasoning on" with their traces (`keep`), or under "reasoning off" without.

    Only the last answer's trace is kept unless `each` turn is learned: what was thought before earlier answers is
    not shown to a model when it is asked again.

    Raises:
        UnusableRowError: the last answer never ends its thought.
    """
    mode = options.on if keep else options.off
    if turns[0].role == SYSTEM:
        head = [replace(turns[0], text=joined(turns[0].text, mode))]
        turns = turns[1:]
    else:
        head = [Turn(SYSTEM, mode)]
    answered = []
    for at, turn in enumerate(turns, start=1):
        if turn.role == ASSISTANT:
            thought, text = split_thought(turn.text)
            shown = keep and thought and (each or at == len(turns))
            turn = Turn(ASSISTANT, text.strip(), thought if shown else None)
        answered.append(turn)
    if OPEN in turns[-1].text and not answered[-1].text:
        raise UnusableRowError("nothing to learn: the thought has no answer after it")
    return (*head, *answered)


def joined(system: str | None, mode: str) -> str:
    """A system prompt with "reasoning on" or "off" after it."""
    return f"{system}\n\n{mode}" if system else mode


def _turn(message: Any) -> Turn:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UnusableRowError("a message is not an object with role and content")
    if not message["role"].isidentifier():  # templates write it as it is, control tokens and all
        raise UnusableRowError("the role of a message is not a word")
    if message.get("tool_calls"):
        raise UnusableRowError("a message calls tools")
    content = message.get("content")
    if not isinstance(content, str):
        raise UnusableRowError("the content of a message is not text")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise UnusableRowError("a message is not valid Unicode") from error
    return Turn(message["role"], content)

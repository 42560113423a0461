"""Where a chat template puts each turn of a conversation, and where each answer begins.

The template is rendered with marks in place of the texts, once for each sequence of roles; what stands between the
marks is the template's own. The real rendering must then be those pieces with the texts between them, so no text,
whatever it looks like, is ever searched for the template's words.

Invariant: an answer begins where the template's generation prompt ends, so what is learned follows exactly what
the model is given when it is asked. A template that hides this place is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from mlx_sumrl.data.conversations import ASSISTANT, Turn
from mlx_sumrl.data.encoding import Span
from mlx_sumrl.data.prompts import UnusableRowError
from mlx_sumrl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_TRIMS: tuple[Callable[[str], str], ...] = (str, str.strip, str.lstrip, str.rstrip)
"""What templates do to a text; the first is: nothing."""
_Shape = tuple[tuple[str, bool], ...]
"""Role, and whether it has a thought, of each turn."""


@dataclass(frozen=True, slots=True)
class AnswerSpan:
    """One assistant turn in a rendered conversation, in characters."""

    turn: int
    """Which turn it is."""
    start: int
    """Where the generation prompt ends."""
    text_end: int
    """Where its text ends; the end of the turn follows, as the template writes it."""
    limit: int
    """Where the next turn's text begins, or the conversation ends."""


@dataclass(frozen=True, slots=True)
class RenderedTurns:
    """A conversation as the model reads it."""

    text: str
    data: tuple[Span, ...]
    """Where texts and thoughts stand; all else is the template's."""
    turns: tuple[Span, ...]
    """Where each turn's text stands, without its thought."""
    answers: tuple[AnswerSpan, ...]
    """The assistant's turns that are asked for."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a template writes around the texts of one shape of conversation."""

    pieces: tuple[str, ...]
    """Before the first text, between each two, and after the last."""
    leads: dict[int, int]
    """Turn -> characters that the template writes between the generation prompt and the answer."""


class TurnTemplate:
    """A tokenizer's chat template, looked at once for each shape of conversation."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, each: bool, switches: Mapping[str, Any] | None = None
    ) -> None:
        """`each`: every answer of a conversation is asked for, else only the last. `switches` are given to the
        template beside the messages.

        Raises:
            UserError: the tokenizer has no chat template.
        """
        self._tokenizer = tokenizer
        self._each = each
        self._switches = dict(switches or {})
        self._name = tokenizer.name_or_path or "this model"
        self._frames: dict[_Shape, _Frame] = {}
        self._trims: dict[_Shape, tuple[Callable[[str], str], ...]] = {}
        if not tokenizer.chat_template:
            raise UserError(
                f"the tokenizer of {self._name} has no chat template, and conversations cannot be written without "
                "one: use a model that has one, or rows with a document and a summary"
            )

    def render(self, turns: Sequence[Turn]) -> RenderedTurns:
        """The conversation as text, and where everything stands in it.

        Raises:
            UnusableRowError: the template refuses these roles, leaves one out, or rewrites a text.
            UserError: the template leaves an answer out, or hides where it begins.
        """
        shape: _Shape = tuple((turn.role, turn.thought is not None) for turn in turns)
        frame = self._frames.get(shape) or self._frame(shape)
        self._frames[shape] = frame
        text = self._apply(turns)
        spans = self._match(text, frame, turns, shape)
        of_turn: list[list[Span]] = []
        following = iter(spans)
        for turn in turns:
            of_turn.append([next(following) for _ in _texts(turn)])
        answers = []
        for at, lead in frame.leads.items():
            after = of_turn[at + 1][0][0] if at + 1 < len(turns) else len(text)
            answers.append(AnswerSpan(at, of_turn[at][0][0] - lead, of_turn[at][-1][1], after))
        return RenderedTurns(text, spans, tuple(own[-1] for own in of_turn), tuple(answers))

    def refusal(self, what: str) -> UserError:
        """The error for a template that hides what has to be seen."""
        way_out = "set masking.learn: answer, or mend the template" if self._each else "mend the template"
        return UserError(f"the chat template of {self._name} {what}: {way_out}")

    def _match(self, text: str, frame: _Frame, turns: Sequence[Turn], shape: _Shape) -> tuple[Span, ...]:
        """Where the texts stand in `text`, which must be the frame's pieces and the texts, trimmed or not."""
        kinds = list(dict.fromkeys(shape))
        tried = self._trims.get(shape)
        for trims in (*([tried] if tried else []), *product(_TRIMS, repeat=len(kinds))):
            trim = dict(zip(kinds, trims, strict=True))
            spans, written = [], frame.pieces[0]
            texts = [trim[kind](one) for kind, turn in zip(shape, turns, strict=True) for one in _texts(turn)]
            for one, piece in zip(texts, frame.pieces[1:], strict=True):
                spans.append((len(written), len(written) + len(one)))
                written += one + piece
            if written == text:
                self._trims[shape] = trims
                return tuple(spans)
        raise UnusableRowError("chat template rewrites the text")

    def _frame(self, shape: _Shape) -> _Frame:
        marked = [
            Turn(role, f"MlxSumrlText{at}End", f"MlxSumrlThought{at}End" if thinks else None)
            for at, (role, thinks) in enumerate(shape)
        ]
        whole = rest = self._apply(marked)
        pieces, begins, ends = [], [], []
        for turn in marked:
            begin = None
            for mark in _texts(turn):
                before, found, after = rest.partition(mark)
                if not found or whole.count(mark) > 1:
                    raise self._lost(turn, whole.count(mark))
                if begin is None:
                    begin = len(whole) - len(rest) + len(before)
                    begins.append(begin)
                pieces.append(before)
                rest = after
            ends.append(len(whole) - len(rest))
        leads = {}
        for at, turn in enumerate(marked):
            last = at == len(marked) - 1
            if turn.role != ASSISTANT or not (self._each or last):
                continue
            asked = self._apply(marked[:at], ask=True)
            if not whole.startswith(asked) or len(asked) > begins[at]:
                raise self.refusal(
                    "hides where an answer begins: it asks for one after "
                    f"{asked[-30:]!r} and writes it after {whole[: begins[at]][-30:]!r}"
                )
            if not last and not self._apply(marked[: at + 1]).startswith(whole[: ends[at]]):
                raise self.refusal("writes an earlier answer otherwise than the last one")
            leads[at] = begins[at] - len(asked)
        return _Frame((*pieces, rest), leads)

    def _lost(self, turn: Turn, times: int) -> Exception:
        """The error for a turn that the template writes never or more than once."""
        what = "leaves out, moves or rewrites" if times < 2 else f"writes {times} times"
        if turn.role == ASSISTANT:
            return self.refusal(f"{what} what the assistant says{' or thinks' if turn.thought else ''}")
        return UnusableRowError(f"the chat template {what} the {turn.role} turn")

    def _apply(self, turns: Sequence[Turn], ask: bool = False) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=ask, **self._switches
            )
        except Exception as error:  # a template raises what jinja and its author like
            cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UnusableRowError(f"the chat template refuses the conversation ({cause})") from error
        return str(rendered)


def _texts(turn: Turn) -> tuple[str, ...]:
    """What of a turn is data, in order."""
    return (turn.text,) if turn.thought is None else (turn.thought, turn.text)

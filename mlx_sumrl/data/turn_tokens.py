"""A rendered conversation as token ids: which of them are answers, and how it is made to fit.

Invariant: the tokens before an answer are those that its prompt has when the model is asked, whatever the answer
begins with; an answer's last token is the template's end of turn; and only one turn of the user ever loses tokens,
from its end.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_sumrl.data.encoding import Encoding, Span, control_tokens, cut, encode
from mlx_sumrl.data.turn_spans import RenderedTurns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Place = tuple[int, int]
"""First token of an answer, and the one after its last."""


@dataclass(frozen=True, slots=True)
class TokenisedTurns:
    """A conversation up to the end of its last answer."""

    encoding: Encoding
    """Its tokens [T]."""
    answers: tuple[Place, ...]
    """Where the answers stand in them, each with its end of turn, in order."""


def tokenise_turns(tokenizer: PreTrainedTokenizerFast, rendered: RenderedTurns) -> TokenisedTurns | None:
    """The tokens of a conversation; None where the template ends an answer without a control token.

    The text is tokenised as a whole. Where a token would reach from the prompt into an answer (two line breaks that
    are one token, a control token that takes spaces along), the answer is tokenised by itself instead.
    """
    ids: list[int] = []
    spans: list[Span] = []
    base = 0
    whole = _from(tokenizer, rendered, base, len(rendered.text))
    starts = []
    control = control_tokens(tokenizer)
    for answer in rendered.answers:
        n = _tokens_before(tokenizer, rendered, whole, base, answer.start, control)
        if n is None:
            before = _from(tokenizer, rendered, base, answer.start)
            ids += before.ids
            spans += before.spans
            starts.append(len(ids))
            base = answer.start
            whole = _from(tokenizer, rendered, base, len(rendered.text))
        else:
            starts.append(len(ids) + n)
    ids += whole.ids
    spans += whole.spans
    places = []
    for start, answer in zip(starts, rendered.answers, strict=True):
        ends = (
            i
            for i in range(start, len(ids))
            if ids[i] in control and spans[i][1] > answer.text_end and spans[i][0] < answer.limit
        )
        end = next(ends, None)
        if end is None:
            return None
        places.append((start, end + 1))
    last = places[-1][1]
    return TokenisedTurns(Encoding(tuple(ids[:last]), tuple(spans[:last])), tuple(places))


def cut_turn(tokenised: TokenisedTurns, turn: Span, longest: int) -> TokenisedTurns | None:
    """At most `longest` tokens: those of `turn` lose their last ones. None: not one of them would be left."""
    kept = cut(tokenised.encoding, turn, longest)
    if kept is None:
        return None
    lost = len(tokenised.encoding.ids) - len(kept.ids)

    def moved(place: Place) -> Place:
        shift = lost if tokenised.encoding.spans[place[0]][0] >= turn[1] else 0
        return place[0] - shift, place[1] - shift

    return TokenisedTurns(kept, tuple(moved(place) for place in tokenised.answers))


def tokens_inside(encoding: Encoding, span: Span) -> int:
    """How many tokens lie wholly inside a span of the text."""
    return sum(span[0] <= a < b <= span[1] for a, b in encoding.spans)


def _tokens_before(
    tokenizer: PreTrainedTokenizerFast,
    rendered: RenderedTurns,
    whole: Encoding,
    base: int,
    start: int,
    control: frozenset[int],
) -> int | None:
    """How many tokens of `whole`, which begins at the character `base`, are those of the prompt that ends at `start`.

    None: the prompt alone would have others.
    """
    # Control tokens part a text before anything else does, so what follows the last of them is enough to look at.
    first = bisect_right(whole.spans, start, key=lambda span: span[1]) - 1
    while first > 0 and whole.ids[first] not in control:
        first -= 1
    for at in (first, 0) if first > 0 else (0,):
        begin = base if at == 0 else whole.spans[at][0]
        before = _from(tokenizer, rendered, begin, start).ids
        n = at + len(before)
        if whole.ids[at:n] == before and (n == 0 or whole.spans[n - 1][1] <= start):
            return n
    return None


def _from(tokenizer: PreTrainedTokenizerFast, rendered: RenderedTurns, start: int, end: int) -> Encoding:
    """The characters `start` to `end` of the text as tokens, their spans in the whole text."""
    data = [(a - start, b - start) for a, b in rendered.data]
    piece = encode(tokenizer, rendered.text[start:end], data)
    return Encoding(piece.ids, tuple((a + start, b + start) for a, b in piece.spans))

"""Text -> token ids, with two promises that a plain call of the tokenizer does not make.

Invariant: a control token (`<|im_end|>` and its like) only ever comes from text that the template or the
user's own instruction wrote, never from data; and truncation takes tokens from the end of one span of the
text alone, whole characters at a time, and leaves every other id as it was. Nothing is tokenised a second
time, except the letters of a control token that stood in the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mlx_sumrl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Span = tuple[int, int]
"""First character of a piece of text, and the one after its last."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """Token ids `[T]` and the characters `[T]` each of them stands for."""

    ids: tuple[int, ...]
    spans: tuple[Span, ...]


def encode(
    tokenizer: PreTrainedTokenizerFast,
    text: str,
    data: Sequence[Span],
    *,
    add_special_tokens: bool = False,
) -> Encoding:
    """Tokenise `text`; inside the spans `data` the name of a control token is spelled out, letter by letter.

    The text is not changed: the ids decode to it as it stands. Outside of such names the ids are those of
    `tokenizer(text)`.

    Raises:
        UserError: the tokenizer is not a fast one and cannot say which characters a token stands for.
    """
    ids, spans = _tokenise(tokenizer, text, add_special_tokens=add_special_tokens)
    control = control_tokens(tokenizer)
    # From the end, so that what is spliced in moves no place that is still to come.
    for i in reversed([i for i, token_id in enumerate(ids) if token_id in control]):
        start, end = spans[i]
        # A token with `lstrip` or `rstrip` takes the spaces beside it along; its name says whose it is.
        name = text[start:end].strip()
        begin = start + text[start:end].find(name)
        if not name or not any(begin < b and a < begin + len(name) for a, b in data):
            continue
        if ids[i] == tokenizer.unk_token_id and name != tokenizer.unk_token:
            continue  # some families write the same token for a character they do not know, which is no name
        pieces = _spell(tokenizer, text[start:end], control)
        ids[i : i + 1] = pieces.ids
        spans[i : i + 1] = [(start + a, start + b) for a, b in pieces.spans]
    return Encoding(tuple(ids), tuple(spans))


def cut(encoding: Encoding, span: Span, longest: int) -> Encoding | None:
    """At most `longest` tokens: those that lie wholly inside `span` lose their last ones, all others stay.

    A character written in several tokens keeps all of them or none. None: not even one character of the span
    would be left.
    """
    excess = len(encoding.ids) - longest
    if excess <= 0:
        return encoding
    inside = [i for i, (a, b) in enumerate(encoding.spans) if span[0] <= a < b <= span[1]]
    if not inside:
        return None
    first, end = inside[0], inside[-1] + 1

    def splits(at: int) -> bool:
        """Whether the tokens before and from `at` on hold parts of one character."""
        return at < len(encoding.spans) and encoding.spans[at][0] < encoding.spans[at - 1][1]

    while end > first and splits(end):  # the token after the span ends the span's last character
        end -= 1
    keep = end - excess
    while keep > first and splits(keep):
        keep -= 1
    if keep <= first:
        return None
    return Encoding(
        encoding.ids[:keep] + encoding.ids[end:],
        encoding.spans[:keep] + encoding.spans[end:],
    )


def _tokenise(tokenizer: Any, text: str, **options: bool) -> tuple[list[int], list[Span]]:
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path} is a slow one, which cannot say where its tokens "
            "stand in the text: use a model folder with a tokenizer.json"
        )
    encoded = tokenizer(text, return_offsets_mapping=True, truncation=False, verbose=False, **options)
    return encoded["input_ids"], encoded["offset_mapping"]


def control_tokens(tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """Ids that mean something to the model beyond their letters."""
    return _control_tokens(tokenizer, len(tokenizer))


@lru_cache(maxsize=4)
def _control_tokens(tokenizer: Any, size: int) -> frozenset[int]:
    """`size`: tokens may be added later."""
    # Some families leave `special` off for tokens that steer all the same (`<think>`, `<｜User｜>`); others
    # add runs of spaces or whole words, which are ordinary text.
    return frozenset(
        token_id
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special or (token.content[:1] + token.content[-1:] in ("<>", "[]"))
    )


def _spell(tokenizer: Any, name: str, control: frozenset[int]) -> Encoding:
    """The name of a control token as ordinary text."""
    ids, spans = _tokenise(tokenizer, name, add_special_tokens=False, split_special_tokens=True)
    if control.isdisjoint(ids):
        return Encoding(tuple(ids), tuple(spans))
    # `split_special_tokens` splits only those marked special; a single character is no control token's name.
    ids, spans = [], []
    for i, character in enumerate(name):
        piece, _ = _tokenise(tokenizer, character, add_special_tokens=False, split_special_tokens=True)
        ids += piece
        spans += [(i, i + 1)] * len(piece)
    return Encoding(tuple(ids), tuple(spans))

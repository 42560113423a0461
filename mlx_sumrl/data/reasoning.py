"""Reasoning in `<think>` tags: where the thought ends and the answer begins, and which rows keep theirs.

Invariant: the answer is what follows the last `</think>`. Text that opens a thought and does not close it has no
answer; text without tags is all answer, unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.data.encoding import Span

OPEN, CLOSE = "<think>", "</think>"
_TAG = re.compile(f"{OPEN}|{CLOSE}")


def split_thought(text: str) -> tuple[str, str]:
    """(thought, answer) of what a model wrote; the thought without tags and stripped.

    A missing `<think>` is one that the prompt wrote: all before `</think>` is thought. Of several thoughts the
    pieces are joined by line breaks. White space between `</think>` and the answer belongs to neither.
    """
    before, close, answer = text.rpartition(CLOSE)
    if OPEN in answer:  # still thinking when the text ended
        before, answer = text, ""
    elif not close:
        return "", text
    pieces = (piece.strip() for piece in _TAG.split(before))
    return "\n".join(piece for piece in pieces if piece), answer.lstrip()


def with_thought(thought: str, answer: str) -> tuple[str, list[Span]]:
    """What a model should write, and where thought and answer stand in it; the rest are the tags."""
    head = f"{OPEN}\n"
    between = f"\n{CLOSE}\n\n"
    begin = len(head) + len(thought) + len(between)
    text = f"{head}{thought}{between}{answer}"
    return text, [(len(head), len(head) + len(thought)), (begin, len(text))]


def answer_text(text: str) -> str:
    """What a model wrote after thinking; empty if it never finished to think."""
    return split_thought(text)[1]


def answer_length(
    token_ids: Sequence[int],
    close_ids: Sequence[int],
    open_ids: Sequence[int] = (),
    blank_ids: Collection[int] = (),
) -> int:
    """Number of `token_ids` after the last `close_ids`; all of them where there is none.

    Args:
        token_ids: what was generated [T], without the stop token, which no length counts.
        close_ids: the tokens of `</think>`: one in models that know the tag. A tokenizer without the tag may
            merge its end with what follows, and then there are no such ids to find.
        open_ids: the tokens of `<think>`; where they come without a close after them there is no answer: 0.
        blank_ids: tokens of white space alone; those between the close and the answer are not counted.

    Raises:
        ValueError: `close_ids` is empty.
    """
    if not close_ids:
        raise ValueError("close_ids is empty: the tokens of </think> are needed")
    start = _after_last(token_ids, close_ids)
    if open_ids and _after_last(token_ids, open_ids) > start:
        return 0
    if start:
        while start < len(token_ids) and token_ids[start] in blank_ids:
            start += 1
    return len(token_ids) - start


def kept_traces(rows: int, share: float, seed: int) -> NDArray[np.bool_]:
    """Which of `rows` rows [rows] keep their trace: `share` of them, rounded half up, drawn with `seed`."""
    kept = np.zeros(rows, dtype=np.bool_)
    chosen = np.random.default_rng(np.random.SeedSequence(seed)).permutation(rows)
    kept[chosen[: int(rows * share + 0.5)]] = True
    return kept


def _after_last(token_ids: Sequence[int], piece: Sequence[int]) -> int:
    """The place after the last occurrence of `piece`; 0 without one."""
    wanted, given = tuple(piece), tuple(token_ids)
    for end in range(len(given), len(wanted) - 1, -1):
        if given[end - len(wanted) : end] == wanted:
            return end
    return 0

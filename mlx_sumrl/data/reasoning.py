"""Reasoning in `<think>` tags: where the thought ends and the answer begins, and which rows keep theirs.

What part of a sampled completion is its answer is for `mlx_sumrl.rollouts.answer_part` to say, in tokens too.

Invariant: the answer is what follows the last `</think>`. Text that opens a thought and does not close it has no
answer; text without tags is all answer, unchanged.
"""

from __future__ import annotations

import re

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


def kept_traces(rows: int, share: float, seed: int) -> NDArray[np.bool_]:
    """Which of `rows` rows [rows] keep their trace: `share` of them, rounded half up, drawn with `seed`."""
    kept = np.zeros(rows, dtype=np.bool_)
    chosen = np.random.default_rng(np.random.SeedSequence(seed)).permutation(rows)
    kept[chosen[: int(rows * share + 0.5)]] = True
    return kept

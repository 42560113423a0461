"""The answer that supervised fine-tuning teaches: the reference, and then to stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlx_sumrl.config import DEFAULT_LENGTH_UNIT, LengthUnit
from mlx_sumrl.data.encoding import encode
from mlx_sumrl.data.text_length import text_length

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def answer_ids(tokenizer: PreTrainedTokenizerFast, reference: str, stop_id: int) -> tuple[int, ...]:
    """Ids `[T]` of the reference, its control tokens spelled out, and the stop token `stop_id`.

    They follow an example's `prompt_ids`; the loss is on these ids alone, the stop token included, since that
    is where the model learns how long an answer is.
    """
    return (*encode(tokenizer, reference, [(0, len(reference))]).ids, stop_id)


def own_length(content_ids: Sequence[int], reference: str, unit: LengthUnit) -> int:
    """How long a reference is, at least 1: its tokens [T] without the stop token, or what a reader counts."""
    return max(len(content_ids) if unit == DEFAULT_LENGTH_UNIT else text_length(reference, unit), 1)

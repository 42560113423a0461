"""What the two kinds of rows, documents and conversations, have in common once they are tokenised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_sumrl.config import MaskingConfig
from mlx_sumrl.data.prompts import UnusableRowError
from mlx_sumrl.data.reasoning import OPEN
from mlx_sumrl.data.supervised_example import SupervisedExample
from mlx_sumrl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ANSWER_TOO_LONG = "the answer is too long"
"""The reason that rows are counted under which masking.too_long drops."""


@dataclass(frozen=True, slots=True)
class SupervisedLimits:
    """How long an example may be, and what ends an answer."""

    max_tokens: int
    """Tokens of prompt and answer together."""
    stop_id: int
    """What ends a document's answer."""
    stop_ids: frozenset[int] | None
    """What ends a completion, for whoever samples; None: not known."""


@dataclass(frozen=True, slots=True)
class SupervisedRow:
    """An example, and what the report says of it."""

    example: SupervisedExample
    prompt_tokens: int
    """Tokens before its first answer."""
    tokens_cut: int
    """Tokens that its document lost."""


class AnswerTooLongError(UnusableRowError):
    """A row whose answer leaves no room for its document, or is longer than the options allow."""

    def __init__(self, tokens: int, limit: str) -> None:
        """`tokens`: of the answer, its stop token included; `limit`: what it does not keep to, for people."""
        super().__init__(ANSWER_TOO_LONG)
        self.tokens = tokens
        self.limit = limit


def check_answer_length(masking: MaskingConfig, tokens: int) -> None:
    """Raises `AnswerTooLongError` for more tokens than `max_answer_tokens`."""
    most = masking.max_answer_tokens
    if most is not None and tokens > most:
        raise AnswerTooLongError(tokens, f"more than masking.max_answer_tokens ({most})")


def check_without_trace(text: str, name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse an answer that begins with a thought where the model has control tokens for it.

    Tags in data are spelled out: the model would learn the letters, and never think with them.

    Raises:
        UserError: see above.
    """
    if text.lstrip().startswith(OPEN) and OPEN in tokenizer.get_added_vocab():
        raise UserError(
            f"row {name}: its answer begins with {OPEN}, which is a token of its own in this model: set "
            "masking.reasoning (share: 1 keeps every thought, share: 0 none)"
        )

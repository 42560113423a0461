"""Rows -> supervised examples: documents with summaries, or conversations.

Invariant: each row either becomes exactly one example or is counted in the report under a reason; examples keep the
rows' order, none has more than `max_tokens` tokens, and what was cut off came from the end of the document, or of
the user's longest turn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_sumrl.config import DataConfig, LengthUnit, MaskingConfig
from mlx_sumrl.data.examples import Which, check_columns, row_id, too_many_unusable
from mlx_sumrl.data.prompts import UnusableRowError
from mlx_sumrl.data.reasoning import kept_traces
from mlx_sumrl.data.row_report import RowCounter, RowReport
from mlx_sumrl.data.sources import Row, Rows
from mlx_sumrl.data.supervised_conversation import ConversationRows
from mlx_sumrl.data.supervised_document import DocumentRows
from mlx_sumrl.data.supervised_example import SupervisedExample
from mlx_sumrl.data.supervised_row import ANSWER_TOO_LONG, AnswerTooLongError, SupervisedLimits, SupervisedRow
from mlx_sumrl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class LoadedSupervised:
    """The supervised examples of one source and what became of its rows."""

    examples: list[SupervisedExample]
    report: RowReport
    """The account of the rows; its prompt lengths are those before the first answer."""
    traces_kept: int = 0
    """Examples that learn to think before they answer."""

    @property
    def trained_tokens(self) -> int:
        """Tokens that count in the loss, of all examples together."""
        return sum(sum(example.trained) for example in self.examples)

    def describe(self) -> str:
        """The account, and what is learned, as one paragraph for people."""
        thinking = f", {self.traces_kept} of them with their thoughts" if self.traces_kept else ""
        learned = f"{self.trained_tokens} tokens of {len(self.examples)} rows are learned{thinking}."
        return f"{self.report.describe()} {learned}"


def load_supervised(
    rows: Rows,
    data: DataConfig,
    masking: MaskingConfig,
    tokenizer: PreTrainedTokenizerFast,
    max_tokens: int,
    stop_id: int,
    target_length: int | LengthUnit,
    *,
    stop_ids: Collection[int] | None = None,
    which: Which = "train",
) -> LoadedSupervised:
    """Every usable row as a supervised example of at most `max_tokens` tokens.

    A document's prompt is the one of `load_examples`, its answer the reference and `stop_id`. A conversation is
    written by the chat template, and each answer ends with the template's end of turn.

    Args:
        target_length: what prompts ask for, or the unit in which each asks for the length of its own answer.
        stop_ids: every token that ends a completion; a template whose end of turn is not among them is refused.
            None: it is not looked at.
        which: the option, `data.train` or `data.evaluation`, that errors name.

    Raises:
        UserError: a column that does not exist, a chat template that cannot be used or hides where answers begin
            and end, an answer that is too long where that is an error, more unusable rows than
            `data.max_unusable_share`, or no usable row at all.
    """
    option = f"data.{which}"
    if not rows.rows:
        raise UserError(f"{option}: {rows.name} has no rows; name a source that has some")
    counter = RowCounter(rows.name)
    made: list[SupervisedRow] = []
    traces_kept = 0
    if rows.columns:
        stops = None if stop_ids is None else frozenset({stop_id, *stop_ids})
        limits = SupervisedLimits(max_tokens, stop_id, stops)
        maker_of = _makers(rows, data, masking, tokenizer, limits, target_length, option)
        made, traces_kept = _make_all(rows, data, masking, maker_of, counter, option)
    else:
        for row in rows.rows:
            counter.refuse(row.id, row.broken or "no columns")
    for one in made:
        counter.use(one.prompt_tokens, one.tokens_cut)
    report = counter.report()
    # Rows that the user said to drop are no reason to stop.
    dropped = report.unusable.get(ANSWER_TOO_LONG, 0)
    unusable = report.total - report.used - dropped
    if not made or unusable > data.max_unusable_share * report.total:
        raise UserError(too_many_unusable(report, data, option))
    return LoadedSupervised([one.example for one in made], report, traces_kept)


def _makers(
    rows: Rows,
    data: DataConfig,
    masking: MaskingConfig,
    tokenizer: PreTrainedTokenizerFast,
    limits: SupervisedLimits,
    target_length: int | LengthUnit,
    option: str,
) -> Callable[[Row], DocumentRows | ConversationRows]:
    """Which of the two makes an example of a row: a source of several may hold both kinds."""
    columns, messages = rows.columns, masking.messages_column

    def is_conversation(row: Row) -> bool:
        return row.fields.get(messages) is not None and row.fields.get(data.document_column) is None

    conversations: ConversationRows | None = None
    chats_only = messages in columns and data.document_column not in columns
    if chats_only or any(map(is_conversation, rows.rows)):
        conversations = ConversationRows(data, masking, tokenizer, limits)
    if chats_only and conversations is not None:
        check_columns(data, columns, rows.name, option, ("id_column",))
        only = conversations
        return lambda row: only
    try:
        check_columns(data, columns, rows.name, option)
    except UserError as error:
        if data.document_column in columns:
            raise
        raise UserError(
            f"{error}; conversations are read from a column {messages!r} (masking.messages_column)"
        ) from error
    documents = DocumentRows(data, masking, tokenizer, limits, target_length, columns, rows.name)
    return lambda row: conversations if conversations and is_conversation(row) else documents


def _make_all(
    rows: Rows,
    data: DataConfig,
    masking: MaskingConfig,
    maker_of: Callable[[Row], DocumentRows | ConversationRows],
    counter: RowCounter,
    option: str,
) -> tuple[list[SupervisedRow], int]:
    """The usable rows; with `masking.reasoning`, `share` of those that have a trace keep it: this many."""
    reasoning = masking.reasoning
    made: list[SupervisedRow | None] = []
    traced: list[tuple[int, Row]] = []  # place in `made`
    too_long: list[tuple[str, AnswerTooLongError]] = []

    def make(row: Row, keep_trace: bool) -> SupervisedRow | None:
        try:
            return maker_of(row).make(row, row_id(row, data), keep_trace)
        except UnusableRowError as error:
            counter.refuse(row.id, str(error))
            if isinstance(error, AnswerTooLongError):
                too_long.append((row.id, error))
            return None

    for row in rows.rows:
        if row.broken is not None:
            counter.refuse(row.id, row.broken)
            continue
        trace = reasoning is not None and maker_of(row).has_trace(row)
        one = make(row, trace)
        if one is not None and trace:
            traced.append((len(made), row))
        made.append(one)
    usable = sum(one is not None for one in made)
    if reasoning is not None and reasoning.share and usable and not traced and option == "data.train":
        raise UserError(
            f"{option}: masking.reasoning teaches to think, but none of the {usable} usable rows of {rows.name} has a "
            "<think> trace before its answer: leave masking.reasoning out, or name a source that has thoughts"
        )
    traces_kept = 0
    if reasoning is not None:
        # Drawn among rows that can be used with their trace, so that the share is that of the examples.
        kept = kept_traces(len(traced), reasoning.share, reasoning.seed)
        traces_kept = int(kept.sum())
        for (place, row), keep in zip(traced, kept, strict=True):
            made[place] = made[place] if keep else make(row, False)
    if too_long and masking.too_long == "error":
        first, error = too_long[0]
        raise UserError(
            f"{option}: {len(too_long)} of {len(rows.rows)} rows of {rows.name} have an answer that is too long; that "
            f"of row {first} has {error.tokens} tokens, {error.limit}: raise that limit, shorten these answers, or set "
            "masking.too_long: drop"
        )
    return [one for one in made if one is not None], traces_kept

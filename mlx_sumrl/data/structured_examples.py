"""Rows -> examples whose reference is JSON: conversations, asked up to their last answer, or documents.

Invariant: a conversation's prompt has the tokens that supervised training puts before its last answer; and each row
either becomes an example whose reference meets the schema or is counted in the report under a reason.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mlx_sumrl.config import DataConfig
from mlx_sumrl.data.answer_schema import AnswerSchema, NotJsonError, read_json
from mlx_sumrl.data.conversations import USER, conversation, with_system
from mlx_sumrl.data.example import Example
from mlx_sumrl.data.examples import LoadedExamples, Which, check_columns, load_examples, row_id
from mlx_sumrl.data.prompts import UnusableRowError
from mlx_sumrl.data.row_report import RowCounter
from mlx_sumrl.data.sources import Row, Rows
from mlx_sumrl.data.supervised_conversation import longest_question
from mlx_sumrl.data.turn_spans import TurnTemplate
from mlx_sumrl.data.turn_tokens import cut_turn, tokenise_turns
from mlx_sumrl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_structured(
    rows: Rows,
    data: DataConfig,
    messages_column: str,
    schema: AnswerSchema,
    tokenizer: PreTrainedTokenizerFast,
    target_length: int,
    which: Which = "evaluation",
) -> LoadedExamples:
    """Every usable row as an example.

    Rows with `data.document_column` are asked by `data.instruction`, all others are conversations.

    Raises:
        UserError: a column that does not exist, a chat template that cannot be used, more unusable rows than
            `data.max_unusable_share`, or no usable row at all.
    """
    if messages_column in rows.columns and data.document_column not in rows.columns:
        return load_conversations(rows, data, messages_column, schema, tokenizer, which)
    checked = Rows(rows.name, [_checked(row, data.reference_column, schema) for row in rows.rows])
    try:
        return load_examples(checked, data, tokenizer, target_length, which)
    except UserError as error:
        if data.document_column in rows.columns:
            raise
        raise UserError(
            f"{error}; conversations are read from a column {messages_column!r} (messages_column)"
        ) from error


def load_conversations(
    rows: Rows,
    data: DataConfig,
    messages_column: str,
    schema: AnswerSchema,
    tokenizer: PreTrainedTokenizerFast,
    which: Which = "evaluation",
) -> LoadedExamples:
    """Every usable conversation as an example: its last answer is the reference, all before it the prompt.

    A prompt of more than `data.max_prompt_tokens` loses the end of the user's longest turn.

    Raises:
        UserError: see `load_structured`.
    """
    option = f"data.{which}"
    if not rows.rows:
        raise UserError(f"{option}: {rows.name} has no rows; name a source that has some")
    if data.chat_template == "none":
        raise UserError(
            "data.chat_template is none, but conversations cannot be written without a chat template: set it to model, "
            "or give rows with a document and a summary"
        )
    check_columns(data, rows.columns, rows.name, option, ("id_column",))
    counter = RowCounter(rows.name)
    template = TurnTemplate(tokenizer, each=False)
    examples = []
    for row in rows.rows:
        try:
            if row.broken is not None:
                raise UnusableRowError(row.broken)
            example, lost = _asked(row, data, messages_column, tokenizer, template)
            _check(example.reference, schema)
        except UnusableRowError as error:
            counter.refuse(row.id, str(error))
            continue
        examples.append(example)
        counter.use(len(example.prompt_ids), lost)
    return LoadedExamples.counted(examples, counter, data, option)


def _asked(
    row: Row,
    data: DataConfig,
    messages_column: str,
    tokenizer: PreTrainedTokenizerFast,
    template: TurnTemplate,
) -> tuple[Example, int]:
    """The example, and how many tokens its prompt lost."""
    turns = with_system(conversation(row.fields, messages_column), data.system)
    rendered = template.render(turns)
    tokenised = tokenise_turns(tokenizer, rendered)
    if tokenised is None:
        raise template.refusal("does not end an answer with a control token")
    start, end = tokenised.answers[-1]
    # The answer is not part of the prompt, so its tokens do not count.
    longest = data.max_prompt_tokens + end - start
    fitted = cut_turn(tokenised, longest_question(tokenised, rendered, turns), longest)
    if fitted is None:
        raise UnusableRowError("the conversation does not fit even without its longest turn")
    prompt_ids = fitted.encoding.ids[: fitted.answers[-1][0]]
    example = Example(
        id=row_id(row, data),
        prompt_ids=prompt_ids,
        prompt=rendered.text[: rendered.answers[-1].start],
        document=next((turn.text for turn in reversed(turns) if turn.role == USER), ""),
        reference=turns[-1].text.strip(),
        fields=dict(row.fields),
    )
    return example, start - len(prompt_ids)


def _check(reference: str, schema: AnswerSchema) -> None:
    """Raises `UnusableRowError` for a reference that is not what answers have to be."""
    try:
        problem = schema.problem(read_json(reference))
    except NotJsonError as error:
        raise UnusableRowError("the reference is not JSON") from error
    if problem is not None:
        raise UnusableRowError(
            f"the reference does not meet the schema at {problem.place}: {problem.message}"
        )


def _checked(row: Row, column: str, schema: AnswerSchema) -> Row:
    """The row of a document; broken where its reference is not what answers have to be."""
    reference = row.fields.get(column)
    if row.broken is None and isinstance(reference, str):
        try:
            _check(reference, schema)
        except UnusableRowError as error:
            return replace(row, broken=str(error))
    return row

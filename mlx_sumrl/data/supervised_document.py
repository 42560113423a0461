"""A row with a document and a summary as a supervised example.

Invariant: its prompt is that of `load_examples`, cut further only where the answer needs the room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlx_sumrl.config import DataConfig, LengthUnit, MaskingConfig
from mlx_sumrl.data.answers import answer_ids, own_length
from mlx_sumrl.data.conversations import joined
from mlx_sumrl.data.encoding import encode
from mlx_sumrl.data.examples import fitted_example, usable_references, usable_text
from mlx_sumrl.data.prompts import PromptTemplate, UnusableRowError
from mlx_sumrl.data.reasoning import split_thought, with_thought
from mlx_sumrl.data.sources import Row
from mlx_sumrl.data.supervised_example import SupervisedExample
from mlx_sumrl.data.supervised_row import (
    AnswerTooLongError,
    SupervisedLimits,
    SupervisedRow,
    check_answer_length,
    check_without_trace,
)
from mlx_sumrl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class DocumentRows:
    """Makes examples of rows with a document and a summary."""

    def __init__(
        self,
        data: DataConfig,
        masking: MaskingConfig,
        tokenizer: PreTrainedTokenizerFast,
        limits: SupervisedLimits,
        target_length: int | LengthUnit,
        columns: Sequence[str],
        source: str,
    ) -> None:
        """``target_length`` is what prompts ask for, or the unit in which each asks for the length of its own answer.

        Raises `UserError` for options or a chat template that do not fit, see `PromptTemplate`."""
        self._data = data
        self._masking = masking
        self._tokenizer = tokenizer
        self._limits = limits
        self._target_length = target_length
        reasoning = masking.reasoning
        systems = {False: data.system}
        if reasoning is not None:
            systems = {
                True: joined(data.system, reasoning.on),
                False: joined(data.system, reasoning.off),
            }
        try:
            self._templates = {
                keep: PromptTemplate(data.model_copy(update={"system": system}), tokenizer, columns, source)
                for keep, system in systems.items()
            }
        except UserError as error:
            if reasoning is None:
                raise
            raise UserError(f"{error} (masking.reasoning says on or off in the system prompt)") from error

    def has_trace(self, row: Row) -> bool:
        """Whether its answer has a thought before it."""
        held = row.fields.get(self._data.reference_column)
        return bool(split_thought(str(held[0] if isinstance(held, list) and held else held))[0])

    def make(self, row: Row, name: str, keep_trace: bool) -> SupervisedRow:
        """The example.

        Raises:
            UnusableRowError: nothing can be learned of this row, or (`AnswerTooLongError`) its answer is too long.
            UserError: its answer has a thought that the options do not speak of.
        """
        data, limits = self._data, self._limits
        document = usable_text(row, data.document_column, "document")
        reference = usable_references(row, data)[0]
        answer = self._answer(reference, name, keep_trace)
        check_answer_length(self._masking, len(answer))
        asked = self._target_length
        target = asked if isinstance(asked, int) else own_length(answer[:-1], reference, asked)

        def prompt(longest: int) -> tuple[tuple[int, ...], int]:
            example, lost = fitted_example(
                self._templates[keep_trace],
                data,
                self._tokenizer,
                target,
                name,
                document,
                reference,
                row.fields,
                longest,
            )
            return example.prompt_ids, lost

        room = limits.max_tokens - len(answer)
        try:
            prompt_ids, lost = prompt(min(data.max_prompt_tokens, room))
        except UnusableRowError:
            if room >= data.max_prompt_tokens:
                raise
            prompt(data.max_prompt_tokens)  # is it the answer's fault, or the template's?
            raise AnswerTooLongError(
                len(answer),
                f"which leaves no room for the document in an example of {limits.max_tokens} tokens "
                "(sft.max_tokens, or what the model reads)",
            ) from None
        ids = prompt_ids + answer
        learned_from = 1 if self._masking.learn == "all" else len(prompt_ids)
        trained = (True,) * (len(ids) - learned_from)
        example = SupervisedExample(name, ids[:learned_from], ids[learned_from:], trained)
        return SupervisedRow(example, len(prompt_ids), lost)

    def _answer(self, reference: str, name: str, keep_trace: bool) -> tuple[int, ...]:
        if self._masking.reasoning is None:
            check_without_trace(reference, name, self._tokenizer)
            return answer_ids(self._tokenizer, reference, self._limits.stop_id)
        thought, text = split_thought(reference)
        text = text.strip()
        if not text:
            raise UnusableRowError("nothing to learn: the thought has no answer after it")
        if not keep_trace:
            return answer_ids(self._tokenizer, text, self._limits.stop_id)
        content, spans = with_thought(thought, text)
        return (*encode(self._tokenizer, content, spans).ids, self._limits.stop_id)

"""A row with a conversation as a supervised example.

Invariant: what is learned follows exactly the tokens that the model is given when it is asked for that answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlx_sumrl.config import DataConfig, MaskingConfig
from mlx_sumrl.data.conversations import (
    ASSISTANT,
    USER,
    Turn,
    conversation,
    with_reasoning,
    with_system,
)
from mlx_sumrl.data.encoding import Span
from mlx_sumrl.data.examples import is_blank
from mlx_sumrl.data.prompts import UnusableRowError, template_switches
from mlx_sumrl.data.reasoning import split_thought
from mlx_sumrl.data.sources import Row
from mlx_sumrl.data.supervised_example import SupervisedExample
from mlx_sumrl.data.supervised_row import (
    AnswerTooLongError,
    SupervisedLimits,
    SupervisedRow,
    check_answer_length,
    check_without_trace,
)
from mlx_sumrl.data.turn_spans import RenderedTurns, TurnTemplate
from mlx_sumrl.data.turn_tokens import TokenisedTurns, cut_turn, tokenise_turns, tokens_inside
from mlx_sumrl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def longest_question(tokenised: TokenisedTurns, rendered: RenderedTurns, turns: Sequence[Turn]) -> Span:
    """Where the user's longest turn stands, the one that loses its end; an empty span where the user has none."""
    asked = [span for span, turn in zip(rendered.turns, turns, strict=True) if turn.role == USER]
    return max(asked, key=lambda span: tokens_inside(tokenised.encoding, span), default=(0, 0))


class ConversationRows:
    """Makes examples of rows with a list of messages."""

    def __init__(
        self,
        data: DataConfig,
        masking: MaskingConfig,
        tokenizer: PreTrainedTokenizerFast,
        limits: SupervisedLimits,
    ) -> None:
        """Raises `UserError` where there is no chat template to write conversations with."""
        if data.chat_template == "none":
            raise UserError(
                "data.chat_template is none, but conversations cannot be written without a chat template: set it to "
                "model, or give rows with a document and a summary"
            )
        self._data = data
        self._masking = masking
        self._tokenizer = tokenizer
        self._limits = limits
        self._each = masking.learn == "assistant_turns"
        self._template = TurnTemplate(tokenizer, self._each, template_switches(data, tokenizer))

    def has_trace(self, row: Row) -> bool:
        """Whether its last answer has a thought before it."""
        try:
            return bool(split_thought(self._turns(row)[-1].text)[0])
        except UnusableRowError:
            return False

    def make(self, row: Row, name: str, keep_trace: bool) -> SupervisedRow:
        """The example.

        Raises:
            UnusableRowError: nothing can be learned of this row, or (`AnswerTooLongError`) its answer is too long.
            UserError: the template hides where answers are, or an answer has a thought that the options do not
                speak of.
        """
        turns = with_system(self._turns(row), self._data.system)
        if self._masking.reasoning is not None:
            turns = with_reasoning(turns, self._masking.reasoning, keep_trace, self._each)
        else:
            for turn in turns:
                if turn.role == ASSISTANT:
                    check_without_trace(turn.text, name, self._tokenizer)
        rendered = self._template.render(turns)
        learned = [not is_blank(turns[answer.turn].text) for answer in rendered.answers]
        if not (any(learned) if self._each else learned[-1]):
            raise UnusableRowError("nothing to learn: empty answer")
        tokenised = tokenise_turns(self._tokenizer, rendered)
        if tokenised is None:
            raise self._template.refusal("does not end an answer with a control token")
        self._check_ends(tokenised)
        fitted = self._fitted(tokenised, rendered, turns)
        ids, first = fitted.encoding.ids, fitted.answers[0][0]
        begin = 1 if self._masking.learn == "all" else first
        trained = [self._masking.learn == "all"] * len(ids)
        for (start, end), wanted in zip(fitted.answers, learned, strict=True):
            trained[start:end] = [wanted] * (end - start)
        if not first:
            raise UnusableRowError("nothing is asked before the first answer")
        example = SupervisedExample(name, ids[:begin], ids[begin:], tuple(trained[begin:]), conversation=True)
        return SupervisedRow(example, first, len(tokenised.encoding.ids) - len(ids))

    def _turns(self, row: Row) -> tuple[Turn, ...]:
        return conversation(row.fields, self._masking.messages_column)

    def _fitted(
        self, tokenised: TokenisedTurns, rendered: RenderedTurns, turns: tuple[Turn, ...]
    ) -> TokenisedTurns:
        """The conversation in `max_tokens`: the user's longest turn loses its end."""
        longest = self._limits.max_tokens
        answer = max(end - start for start, end in tokenised.answers)
        check_answer_length(self._masking, answer)
        if len(tokenised.encoding.ids) <= longest:
            return tokenised
        turn = longest_question(tokenised, rendered, turns)
        fitted = cut_turn(tokenised, turn, longest)
        if fitted is not None:
            return fitted
        answers = sum(end - start for start, end in tokenised.answers)
        if cut_turn(tokenised, turn, longest + answers) is None:
            raise UnusableRowError("the conversation does not fit even without its longest turn")
        raise AnswerTooLongError(
            answer,
            f"which leaves no room for the question in an example of {longest} tokens "
            "(sft.max_tokens, or what the model reads)",
        )

    def _check_ends(self, tokenised: TokenisedTurns) -> None:
        stops = self._limits.stop_ids
        end = tokenised.encoding.ids[tokenised.answers[-1][1] - 1]
        if stops is None or end in stops:
            return
        names = self._tokenizer.convert_ids_to_tokens(sorted(stops))
        raise UserError(
            f"the chat template of {self._tokenizer.name_or_path} ends an answer with "
            f"{self._tokenizer.convert_ids_to_tokens(end)!r}, but the model stops at {', '.join(map(repr, names))}: "
            "add that token to eos_token_id in the model folder's config.json"
        )

"""A model that is there already, and how it is asked for summaries: what `evaluate` and `summarize` share."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from mlx_sumrl.config import (
    DEFAULT_DTYPE,
    AnswerConfig,
    DataConfig,
    Dtype,
    LengthConfig,
    PolicyConfig,
    Room,
)
from mlx_sumrl.data.prompting import ReasoningMode, answer_as_trained, as_trained, asked_to_reason
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.rollouts.answer_part import AnswerPart


class GivenModel(Room):
    """Which model, and how."""

    model: str
    """A model folder or a Hugging Face id."""
    adapter: str | None = None
    """An mlx_lm adapter folder on top of it."""
    dtype: Dtype = DEFAULT_DTYPE
    """Type of the weights."""
    data: DataConfig = DataConfig()
    """How the text is put to the model; as in training where its folder says how."""
    length: LengthConfig = LengthConfig()
    """What the instruction asks for, and what counts as within."""
    answer: AnswerConfig = AnswerConfig()
    """Which part of what it writes counts; as in training where its folder says so."""
    reasoning: ReasoningMode | None = None
    """Ask under the system prompt that switched reasoning on or off in training (masking.reasoning); on, the answer
    is what follows `</think>`."""
    max_tokens: int = Field(default=128, gt=1)
    """Most tokens of a summary, the stop token counted."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy."""
    seed: int = 0
    """Matters above temperature 0."""

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        if self.length.targets:
            raise ValueError(
                f"length.targets {', '.join(map(str, self.length.targets))} are drawn in training only: give one "
                "--length.target at a time"
            )
        return self

    def loaded(self, max_tokens: int) -> tuple[Policy, DataConfig, LengthConfig]:
        """The model, and `data` and `length` as it was trained with them, prompts cut to leave ``max_tokens`` room.

        The length's unit is written out in the instruction.
        Raises `UserError` for what cannot be loaded or leaves no room.
        """
        data, length = as_trained(self.model, self.data, self.length)
        data = asked_to_reason(self.model, data, self.data, self.reasoning)
        options = PolicyConfig(model=self.model, dtype=self.dtype)
        policy = load_policy(options, adapter=self.adapter, trained=False)
        room = policy.room_for_prompt(data.max_prompt_tokens, max_tokens)
        data = data.asking_in(length.unit).model_copy(update={"max_prompt_tokens": room})
        return policy, data, length

    def answers(self, policy: Policy) -> AnswerPart:
        """What finds the answer in a completion. Raises `UserError` for a folder that cannot be read."""
        return AnswerPart.of(answer_as_trained(self.model, self.answer, self.reasoning), policy.tokenizer)

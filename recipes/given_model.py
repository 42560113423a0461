"""A model that is there already, and how it is asked for summaries: what `evaluate` and `summarize` share."""

from __future__ import annotations

from pydantic import Field

from mlx_sumrl.config import DEFAULT_DTYPE, DataConfig, Dtype, LengthConfig, PolicyConfig, Room
from mlx_sumrl.data.prompting import as_trained
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.policy import Policy


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
    max_tokens: int = Field(default=128, gt=1)
    """Most tokens of a summary, the stop token counted."""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy."""
    seed: int = 0
    """Matters above temperature 0."""

    def loaded(self, max_tokens: int) -> tuple[Policy, DataConfig, LengthConfig]:
        """The model, and `data` and `length` as it was trained with them, prompts cut to leave ``max_tokens`` room.

        The length's unit is written out in the instruction.
        Raises `UserError` for what cannot be loaded or leaves no room.
        """
        policy = load_policy(PolicyConfig(model=self.model, dtype=self.dtype), adapter=self.adapter)
        data, length = as_trained(self.model, self.data, self.length)
        room = policy.room_for_prompt(data.max_prompt_tokens, max_tokens)
        data = data.asking_in(length.unit).model_copy(update={"max_prompt_tokens": room})
        return policy, data, length

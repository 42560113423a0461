"""The MLX engine: what the process of `mlx_sumrl.rollouts.serve` does with a request once it is its turn.

Invariant: a request's groups are, bit for bit, those of a `LocalSampler` in the trainer's process with the same
weights, prompts, group size, sampling and seed (and the same threads and BLAS): all prompts are one batch, in order.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mlx_sumrl.config import Dtype, PolicyConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.peft import put_peft, read_peft, remove_adapters
from mlx_sumrl.policy.snapshot import HalfTakenError, take_weights, text_logprobs
from mlx_sumrl.rollouts.local import LocalSampler
from mlx_sumrl.rollouts.types import Sampling

TokenId = Annotated[int, Field(ge=0, strict=True)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Request(BaseModel):
    """Typed, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Draw(Request):
    """As `Sampling`; every value is named, so that no default lives here too."""

    temperature: Finite = Field(ge=0)
    top_p: Finite = Field(gt=0, le=1)
    top_k: int = Field(ge=0)
    max_tokens: int = Field(gt=0)
    min_tokens: int = Field(ge=0)


class Generate(Request):
    """Prompts, each to be answered ``group_size`` times."""

    prompts: tuple[Annotated[tuple[TokenId, ...], Field(min_length=1)], ...] = Field(min_length=1)
    group_size: int = Field(gt=0)
    sampling: Draw
    seed: int = Field(ge=0, lt=1 << 63)
    stop_ids: tuple[TokenId, ...]


class Score(Request):
    """A text."""

    token_ids: tuple[TokenId, ...] = Field(min_length=2)


class Load(Request):
    """Other weights."""

    kind: Literal["adapter", "full", "none"]
    """A PEFT folder on the model that was served first, whole weights, or that model itself again."""
    path: str | None = None


class Engine:
    """A model with a sampler. Whatever makes it compute is called from one thread, the one that made it."""

    def __init__(self, model: str, dtype: Dtype, max_rows: int, cache_bits: int | None) -> None:
        """Raises `UserError` for a model that cannot be loaded."""
        # As for LoRA, so that a quantised model is taken too; the adapters go at once.
        self.policy = load_policy(PolicyConfig(model=model, tuning="lora", dtype=dtype))
        remove_adapters(self.policy)
        self.sampler = LocalSampler(self.policy, max_rows, cache_bits)
        self.whole = True
        """Whether there is a whole model to sample from; not after weights that broke off."""
        self._base = True  # whether the weights below any adapter are those of the model's own folder

    @property
    def max_tokens(self) -> int:
        """Longest prompt and completion together; where the model's config names none, what nobody asks for."""
        return self.policy.context or 1 << 20

    def generate(self, asked: Generate) -> dict[str, Any]:
        """The groups, in the order of the prompts. Raises `UserError`."""
        self._check_ids([token for prompt in asked.prompts for token in prompt])
        self._check_ids(list(asked.stop_ids))
        longest = max(map(len, asked.prompts)) + asked.sampling.max_tokens
        self._check_length(longest)
        self.policy.stop_ids = frozenset(asked.stop_ids)
        examples = [
            Example(id=str(place), prompt_ids=prompt, prompt="", document="", reference="")
            for place, prompt in enumerate(asked.prompts)
        ]
        sampling = Sampling(**asked.sampling.model_dump())
        groups = self.sampler.sample(examples, asked.group_size, sampling, asked.seed)
        answer = [
            [
                {
                    "token_ids": completion.token_ids,
                    "logprobs": completion.logprobs,
                    "finish_reason": completion.finish_reason,
                }
                for completion in group.completions
            ]
            for group in groups
        ]
        for group in groups:
            for completion in group.completions:
                _check_finite(completion.logprobs)
        return {"groups": answer}

    def score(self, asked: Score) -> dict[str, Any]:
        """log p of every token but the first, at temperature 1 and unfiltered. Raises `UserError`."""
        self._check_ids(list(asked.token_ids))
        self._check_length(len(asked.token_ids))
        logprobs = text_logprobs(self.policy, asked.token_ids)
        _check_finite(logprobs)
        return {"logprobs": logprobs}

    def load(self, asked: Load) -> dict[str, Any]:
        """Other weights; how long it took. Raises `UserError`, and then has, but for a broken file, the old ones."""
        started = time.perf_counter()
        if asked.kind == "none":
            if asked.path is not None:
                raise UserError(f"/load kind none takes no path, not {asked.path}; leave it out")
            self._back_to_base()
        elif asked.path is None:
            raise UserError(f"/load kind {asked.kind} needs a path: name the folder")
        elif asked.kind == "adapter":
            adapter = read_peft(self.policy, asked.path)  # raises, if it does, while nothing has changed
            self._back_to_base()
            put_peft(self.policy, adapter)
        else:
            self._take(Path(asked.path))
            self._base = False
        return {"seconds": time.perf_counter() - started}

    def _back_to_base(self) -> None:
        if self._base:
            remove_adapters(self.policy)
        else:
            self._take(self.policy.folder)
            self._base = True

    def _take(self, folder: Path) -> None:
        try:
            take_weights(self.policy, folder)
        except HalfTakenError:
            self.whole, self._base = False, False
            raise
        self.whole = True

    def _check_ids(self, token_ids: list[int]) -> None:
        if token_ids and (highest := max(token_ids)) >= self.policy.vocabulary:
            raise UserError(
                f"token id {highest} is not in the model's vocabulary of {self.policy.vocabulary}; send ids of the "
                "tokenizer that the model was made with"
            )

    def _check_length(self, tokens: int) -> None:
        if tokens > self.max_tokens:
            raise UserError(
                f"{tokens} tokens are asked for where {self.policy.source} reads {self.max_tokens}; "
                "shorten the prompt or lower max_tokens"
            )


def _check_finite(logprobs: tuple[float, ...] | list[float]) -> None:
    if not all(map(math.isfinite, logprobs)):
        raise UserError("the weights give log-probabilities that are not finite; load others")

"""What a completion is, and what every sampler promises. Never imports mlx: the cluster layer stands on it.

Invariant: a `Group` belongs to exactly one `Example`, and its completions are answers to that example's
``prompt_ids`` and to nothing else; a sampler returns the groups in the order it was given the examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

from mlx_sumrl.config import SamplingConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.errors import UserError

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer, exactly as sampled. Training uses the ids only; the text is for rewards and people."""

    token_ids: tuple[int, ...]
    """Sampled ids, the stop token included when there is one."""
    logprobs: tuple[float, ...]
    """Natural log-probability of each id under the distribution it was drawn from (temperature and filters in)."""
    finish_reason: FinishReason
    """``stop``: the last id is a stop token. ``length``: cut at ``max_tokens``."""
    policy_version: int
    """Version of the policy that sampled it."""
    text: str
    """The ids decoded without special tokens."""

    @property
    def content_ids(self) -> tuple[int, ...]:
        """The ids without the stop token."""
        return self.token_ids[:-1] if self.finish_reason == "stop" else self.token_ids

    @property
    def length(self) -> int:
        """Generated tokens without the stop token: the unit in which lengths are asked for."""
        return len(self.content_ids)


@dataclass(frozen=True, slots=True)
class Group:
    """All completions of one prompt in one step."""

    example: Example
    completions: tuple[Completion, ...]

    @property
    def policy_version(self) -> int:
        """The oldest version any of its completions was sampled under."""
        return min(completion.policy_version for completion in self.completions)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn: logits / temperature, then top-k, then top-p (the order vLLM uses)."""

    temperature: float = 1.0
    """0 takes the most likely token; the log-probabilities are then those at temperature 1."""
    top_p: float = 1.0
    top_k: int = 0
    """0 switches the filter off."""
    max_tokens: int = 128
    """Most tokens generated, the stop token counted."""
    min_tokens: int = 0
    """Stop tokens are forbidden before this many tokens."""

    @classmethod
    def in_training(cls, options: SamplingConfig) -> Self:
        """As a run or one of its stages draws."""
        return cls(options.temperature, options.top_p, options.top_k, options.max_tokens)


class NoSamplerError(UserError):
    """Nobody is left to sample from. The trainer saves what it has before this ends the run."""


class Sampler(Protocol):
    """Draws completions. A local one and one behind HTTP are the same to the training loop."""

    def sample(
        self, examples: Sequence[Example], group_size: int, sampling: Sampling, seed: int
    ) -> list[Group]:
        """One group of ``group_size`` completions per example, in the order of ``examples``.

        The same seed, examples and policy give the same groups.
        """
        ...


class TrainingSampler(Sampler, Protocol):
    """A sampler that follows the policy as it is trained."""

    on_group: Callable[[Group], None] | None
    """Called with each group as soon as it is complete, in whatever thread that is, so that scoring can begin before
    the last one is; groups may come that no `sample` returns. It takes no time and raises nothing."""

    @property
    def ahead(self) -> int:
        """Steps after the one being sampled that are worth preparing; 0 where nothing is sampled ahead."""
        ...

    def publish(self, policy_version: int) -> None:
        """Sample from the policy as it is now, and stamp completions with this version.

        A remote sampler may go on answering with an older one for a while; completions say which.
        """
        ...

    def prepare(self, examples: Sequence[Example], group_size: int, sampling: Sampling, seed: int) -> None:
        """A later call of `sample` will be this one: begin on it where that can be done beside the training.

        Calls come in the order in which they were prepared, one for each change of the policy; what is passed over
        is given up, and what is prepared already is left as it is. Preparing a step before the one before it is
        sampled leaves no machine without work between the two.
        """
        ...

    def report(self) -> Mapping[str, float]:
        """Metrics of the last `sample`, by DESIGN's names: ``groups/requeued``, ``time/wait``, what else there is."""
        ...

    def status(self) -> str:
        """For the progress line: each machine that samples, and how it does; empty where that is this one."""
        ...

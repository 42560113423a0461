"""The local sampler: completions drawn by the policy itself, in this process.

A prompt runs through the model once; its cache is then repeated for the G completions of its group, and the
groups of several prompts are decoded side by side. Rows that have finished leave the batch.

Invariant: the random numbers of a completion depend on (seed, place of its prompt, its place in the group,
token position) alone, not on which rows share its batch or when they finish.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_sumrl.data.example import Example
from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.policy.sampling_cache import spread
from mlx_sumrl.rollouts.draw import draw, uniforms
from mlx_sumrl.rollouts.types import Completion, Group, Sampling

RETIRE_AT = 0.75
"""The batch is compacted once no more than this share of its rows is still going."""


@dataclass
class _Row:
    """One completion as it grows."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False


@dataclass(frozen=True)
class _FilledPrompt:
    """A prompt that has been read: its cache, and the hidden state [1, D] that its first token comes from."""

    cache: Any
    last_hidden: mx.array


@dataclass(frozen=True)
class Span:
    """Completions ``first`` to ``first + rows`` of the prompt at this place."""

    prompt: int
    first: int
    rows: int


def row_batches(prompts: int, group_size: int, max_rows: int) -> list[list[Span]]:
    """Batches of at most ``max_rows`` completions that together hold every one once, in order."""
    batches: list[list[Span]] = [[]]
    room = max_rows
    for prompt in range(prompts):
        first = 0
        while first < group_size:
            if room == 0:
                batches.append([])
                room = max_rows
            rows = min(group_size - first, room)
            batches[-1].append(Span(prompt, first, rows))
            first, room = first + rows, room - rows
    return batches if batches[-1] else []


class LocalSampler:
    """Samples with a `Policy` in this process; implements `Sampler`."""

    def __init__(self, policy: Policy, max_rows: int = 64) -> None:
        self.policy = policy
        self.max_rows = max_rows
        """Completions decoded at once."""
        self.policy_version = 0
        """Stamped on every completion."""

    def publish(self, policy_version: int) -> None:
        """The policy is this process's own, so only the stamp changes."""
        self.policy_version = policy_version

    def sample(
        self, examples: Sequence[Example], group_size: int, sampling: Sampling, seed: int
    ) -> list[Group]:
        """One group per example, in their order; see `Sampler`."""
        self.policy.model.eval()
        draws = [uniforms(seed, p, group_size, sampling.max_tokens) for p in range(len(examples))]
        rows_PG: list[list[_Row]] = [[] for _ in examples]
        filled: dict[int, _FilledPrompt] = {}
        for batch in row_batches(len(examples), group_size, self.max_rows):
            for span in batch:
                if span.prompt not in filled:
                    filled[span.prompt] = self._fill(examples[span.prompt])
            rows = self._decode(
                [filled[span.prompt] for span in batch],
                [span.rows for span in batch],
                sampling,
                mx.array(np.concatenate([draws[s.prompt][s.first : s.first + s.rows] for s in batch])),
            )
            for span in batch:
                rows_PG[span.prompt] += rows[: span.rows]
                rows = rows[span.rows :]
                if len(rows_PG[span.prompt]) == group_size:
                    del filled[span.prompt]
        return [
            Group(example, tuple(self._completion(row) for row in rows))
            for example, rows in zip(examples, rows_PG, strict=True)
        ]

    def _fill(self, example: Example) -> _FilledPrompt:
        """Run a prompt through the model, once."""
        cache = mlx_internals.prompt_cache(self.policy.model)
        hidden = mlx_internals.backbone(self.policy.model, mx.array([example.prompt_ids]), cache)
        return _FilledPrompt(cache, hidden[:, -1])

    def _completion(self, row: _Row) -> Completion:
        return Completion(
            token_ids=tuple(row.token_ids),
            logprobs=tuple(row.logprobs),
            finish_reason="stop" if row.stopped else "length",
            policy_version=self.policy_version,
            text=self.policy.decode(row.token_ids[:-1] if row.stopped else row.token_ids),
        )

    def _decode(
        self,
        prompts: Sequence[_FilledPrompt],
        repeats: Sequence[int],
        sampling: Sampling,
        uniforms_BT: mx.array,
    ) -> list[_Row]:
        """``repeats[i]`` completions of each prompt, side by side."""
        model = self.policy.model
        caches = spread([prompt.cache for prompt in prompts], repeats, sampling.max_tokens)
        last_hidden = [
            mx.repeat(p.last_hidden, count, axis=0) for p, count in zip(prompts, repeats, strict=True)
        ]
        logits_BV = mlx_internals.head(model, mx.concatenate(last_hidden))
        rows = [_Row() for _ in range(sum(repeats))]
        going = list(range(len(rows)))  # index into rows of each row of the batch
        forbidden = np.zeros((1, logits_BV.shape[-1]), np.float32)
        forbidden[0, sorted(self.policy.stop_ids)] = -np.inf
        forbid_stops = mx.array(forbidden)

        for position in range(sampling.max_tokens):
            if position < sampling.min_tokens:
                logits_BV = logits_BV + forbid_stops
            tokens_B, logprobs_B = draw(logits_BV, sampling, uniforms_BT[:, position])
            mx.eval(tokens_B, logprobs_B, *(array for cache in caches for array in cache.arrays))
            batch_tokens: list[int] = tokens_B.tolist()  # type: ignore[assignment]
            batch_logprobs: list[float] = logprobs_B.tolist()  # type: ignore[assignment]
            for index, token, logprob in zip(going, batch_tokens, batch_logprobs, strict=True):
                row = rows[index]
                if row.stopped:
                    continue
                row.token_ids.append(token)
                row.logprobs.append(logprob)
                row.stopped = token in self.policy.stop_ids
            alive = [i for i, index in enumerate(going) if not rows[index].stopped]
            if not alive or position + 1 == sampling.max_tokens:
                break
            if len(alive) <= RETIRE_AT * len(going):
                chosen = mx.array(alive)
                for batch_cache in caches:
                    batch_cache.keep(chosen)
                tokens_B, uniforms_BT = tokens_B[chosen], uniforms_BT[chosen]
                going = [going[i] for i in alive]
            hidden = mlx_internals.backbone(model, tokens_B[:, None], caches)[:, -1]
            logits_BV = mlx_internals.head(model, hidden)
        return rows

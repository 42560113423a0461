"""The local sampler: completions drawn by the policy itself, in this process.

A prompt runs through the model once; its cache is then repeated for the G completions of its group, and the
groups of several prompts are decoded side by side. Rows that have finished leave the batch.

Invariant: the random numbers of a completion depend on (seed, place of its prompt, its place in the group,
token position) alone, not on which rows share its batch or when they finish.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_sumrl.data.example import Example
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.attention import sampling_attention
from mlx_sumrl.policy.exponential import on_cpu, swiglu
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.policy.sampling_cache import BatchCache, BatchState, group_size, spread
from mlx_sumrl.reporting.model_shape import ModelShape
from mlx_sumrl.rollouts.constraint import Constraint, Matcher
from mlx_sumrl.rollouts.draw import draw, uniforms
from mlx_sumrl.rollouts.token_mask import masked_logits
from mlx_sumrl.rollouts.types import Completion, Group, Sampling

PREFILL = 256
"""Prompt tokens computed at once. On a CPU, 8 prompts of 645 tokens take 1.7 s and 23 MB so, 2.0 s and 43 MB whole:
what a token may not see yet is not computed. All 8 in one batch take as long as one by one."""
RETIRE_AT = 0.75
"""The batch is compacted once no more than this share of its rows is still going."""


@dataclass
class _Row:
    """One completion as it grows."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False
    matcher: Matcher | None = None
    """What may come next, where that is held to anything."""


@dataclass(frozen=True)
class _FilledPrompt:
    """A prompt that has been read: its cache, and the hidden state [1, D] that its first token comes from."""

    cache: Any
    last_hidden: mx.array


@dataclass(frozen=True)
class _Drawn:
    """One token of each row of the batch, perhaps still being computed."""

    tokens_B: mx.array
    logprobs_B: mx.array

    def keep(self, rows: mx.array) -> _Drawn:
        """Of these rows only."""
        return _Drawn(self.tokens_B[rows], self.logprobs_B[rows])


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

    def __init__(
        self,
        policy: Policy,
        max_rows: int = 64,
        cache_bits: int | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        """Raises `UserError` when ``cache_bits`` is not 4, 8 or None, or the policy's heads do not fit them."""
        if cache_bits not in (None, 4, 8):
            raise UserError(
                f"sampling.cache_bits {cache_bits}: a cache has 4 or 8 bits; null does not quantise"
            )
        if cache_bits is not None:
            group_size(ModelShape.from_config(policy.config).head_dim, cache_bits)
        self.policy = policy
        self.max_rows = max_rows
        """Completions decoded at once."""
        self.cache_bits = cache_bits
        """Bits of a key or value while completions are decoded, or None for those of the policy.

        Log-probabilities are those of the policy with this cache, the one that sampled: not of the policy that is
        trained, whose ratio to it is then not 1 even on the same weights.
        """
        self.constraint = constraint
        """What each completion is held to, or None.

        Tokens that it does not allow are taken out first, then temperature and filters do their work. Log-probabilities
        are those of the tokens that were left: 0 where only one was. Training would measure the same completions by
        the policy itself, whose ratio to these is not 1 on the same weights and whose other tokens are never seen, so
        `publish` refuses: a constrained sampler is for answers, not for training.
        """
        self.policy_version = 0
        """Stamped on every completion."""
        self.on_group: Callable[[Group], None] | None = None
        """See `TrainingSampler`; called between batches of `max_rows` completions."""

    @property
    def ahead(self) -> int:
        """None: the policy is still being trained, and so is this process."""
        return 0

    def publish(self, policy_version: int) -> None:
        """The policy is this process's own, so only the stamp changes.

        Raises:
            UserError: the completions are held to a constraint.
        """
        if self.constraint is not None:
            raise UserError(
                "a sampler with a constraint cannot be trained with: its log-probabilities are not those of the "
                "policy; give the trainer a LocalSampler without one"
            )
        self.policy_version = policy_version

    def prepare(self, examples: Sequence[Example], group_size: int, sampling: Sampling, seed: int) -> None:
        """Nothing; see `ahead`."""

    def report(self) -> Mapping[str, float]:
        """Nothing is waited for and nothing asked twice."""
        return {"groups/requeued": 0.0, "time/wait": 0.0}

    def status(self) -> str:
        """Nothing to tell: this process samples."""
        return ""

    def sample(
        self, examples: Sequence[Example], group_size: int, sampling: Sampling, seed: int
    ) -> list[Group]:
        """One group per example, in their order; see `Sampler`.

        Raises:
            UserError: `min_tokens` beside a constraint, or a constraint that no token can go on with.
        """
        if self.constraint is not None and sampling.min_tokens:
            raise UserError(
                f"min_tokens {sampling.min_tokens} cannot be held beside a constraint, which may leave nothing but a "
                "stop token: set one of the two"
            )
        self.policy.model.eval()
        if not on_cpu():
            return self._sample(examples, group_size, sampling, seed)
        with mlx_internals.computing_by(self.policy.model.layers[0], _attend, swiglu):
            return self._sample(examples, group_size, sampling, seed)

    def _sample(
        self, examples: Sequence[Example], group_size: int, sampling: Sampling, seed: int
    ) -> list[Group]:
        head = mlx_internals.widened_head(self.policy.model)
        draws = [uniforms(seed, p, group_size, sampling.max_tokens) for p in range(len(examples))]
        rows_PG: list[list[_Row]] = [[] for _ in examples]
        groups: list[Group] = []
        filled: dict[int, _FilledPrompt] = {}
        for batch in row_batches(len(examples), group_size, self.max_rows):
            for span in batch:
                if span.prompt not in filled:
                    filled[span.prompt] = self._fill(examples[span.prompt])
            caches, last_hidden_BD = _side_by_side(
                [filled[span.prompt] for span in batch],
                [span.rows for span in batch],
                sampling.max_tokens,
                self.cache_bits,
            )
            for span in batch:
                if span.first + span.rows == group_size:
                    del filled[span.prompt]  # no later batch needs it
            rows = self._decode(
                head,
                caches,
                last_hidden_BD,
                sampling,
                mx.array(np.concatenate([draws[s.prompt][s.first : s.first + s.rows] for s in batch])),
            )
            for span in batch:
                rows_PG[span.prompt] += rows[: span.rows]
                rows = rows[span.rows :]
                if len(rows_PG[span.prompt]) == group_size:
                    groups.append(
                        Group(examples[span.prompt], tuple(map(self._completion, rows_PG[span.prompt])))
                    )
                    if self.on_group is not None:
                        self.on_group(groups[-1])
        assert [group.example for group in groups] == list(examples)
        return groups

    def _fill(self, example: Example) -> _FilledPrompt:
        """Run a prompt through the model, once, `PREFILL` tokens at a time."""
        cache = mlx_internals.prompt_cache(self.policy.model)
        for start in range(0, len(example.prompt_ids), PREFILL):
            tokens_1L = mx.array([example.prompt_ids[start : start + PREFILL]])
            last_hidden = mlx_internals.backbone(self.policy.model, tokens_1L, cache)[:, -1]
            mx.async_eval(last_hidden, [layer.state for layer in cache])  # type: ignore[no-untyped-call]
        return _FilledPrompt(cache, last_hidden)

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
        head: Callable[[mx.array], mx.array],
        caches: Sequence[BatchCache | BatchState],
        last_hidden_BD: mx.array,
        sampling: Sampling,
        uniforms_BT: mx.array,
    ) -> list[_Row]:
        """A completion of each row of the caches, side by side.

        A step's graph is built while the step before is computed, and computed as soon as that one's tokens are
        known: a row that has just stopped may be in it, and is not looked at. Held to a constraint, its logits are
        computed while what may come next is found out.
        """
        constraint = self.constraint
        rows = [_Row() for _ in range(last_hidden_BD.shape[0])]
        if constraint is not None:
            for row in rows:
                row.matcher = constraint.start()
        going = list(range(len(rows)))  # index into rows of each row of the batch
        step = self._drawn(_held(head(last_hidden_BD), rows), sampling, uniforms_BT, 0)
        _start(step, caches)
        for position in range(sampling.max_tokens):
            following = logits_BV = None
            if position + 1 < sampling.max_tokens:
                hidden_BD = mlx_internals.backbone(self.policy.model, step.tokens_B[:, None], caches)[:, -1]
                logits_BV = head(hidden_BD)
                if constraint is None:
                    following = self._drawn(logits_BV, sampling, uniforms_BT, position + 1)
            self._note(step, [rows[index] for index in going])
            alive = [i for i, index in enumerate(going) if not rows[index].stopped]
            if not alive or logits_BV is None:
                break
            if following is None:
                _compute(caches, logits_BV)
                logits_BV = _held(logits_BV, [rows[index] for index in going])
                following = self._drawn(logits_BV, sampling, uniforms_BT, position + 1)
            step = following
            _start(step, caches)
            if len(alive) <= RETIRE_AT * len(going):
                # Of the step under way: the layers are then compacted one by one within the next.
                chosen = mx.array(alive)
                for cache in caches:
                    cache.keep(chosen)
                step, uniforms_BT = step.keep(chosen), uniforms_BT[chosen]
                going = [going[i] for i in alive]
        return rows

    def _drawn(self, logits_BV: mx.array, sampling: Sampling, uniforms_BT: mx.array, position: int) -> _Drawn:
        if position < sampling.min_tokens:
            forbidden = np.zeros((1, logits_BV.shape[-1]), np.float32)
            forbidden[0, sorted(self.policy.stop_ids)] = -np.inf
            logits_BV = logits_BV + mx.array(forbidden)
        return _Drawn(*draw(logits_BV, sampling, uniforms_BT[:, position]))

    def _note(self, step: _Drawn, rows: Sequence[_Row]) -> None:
        """Add a step's tokens, which are waited for, to the rows that have not stopped."""
        tokens: list[int] = step.tokens_B.tolist()  # type: ignore[assignment]
        logprobs: list[float] = step.logprobs_B.tolist()  # type: ignore[assignment]
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            if not row.stopped:
                row.token_ids.append(token)
                row.logprobs.append(logprob)
                row.stopped = token in self.policy.stop_ids
                if row.matcher is not None and not row.stopped:
                    row.matcher.accept(token)


def _held(logits_BV: mx.array, rows: Sequence[_Row]) -> mx.array:
    """The logits of what may come next in these rows; all of them where nothing is held to a constraint."""
    if all(row.matcher is None for row in rows):
        return logits_BV
    return masked_logits(logits_BV, [None if row.stopped else row.matcher for row in rows])


def _attend(
    queries: mx.array, keys: Any, values: Any, cache: Any, scale: float, mask: mx.array | str | None
) -> mx.array:
    """Attention for a CPU, which has no kernel of its own to lose; quantised keys are left to mlx-lm."""
    if isinstance(keys, mx.array):
        return sampling_attention(queries, keys, values, scale, mask)
    return mlx_internals.usual_attention(queries, keys, values, cache, scale, mask)


def _side_by_side(
    prompts: Sequence[_FilledPrompt], repeats: Sequence[int], room: int, bits: int | None
) -> tuple[list[BatchCache | BatchState], mx.array]:
    """Caches of ``repeats[i]`` completions of each prompt, ``room`` tokens long, and hidden states [B, D]."""
    caches = spread([prompt.cache for prompt in prompts], repeats, room, bits)
    hidden = [mx.repeat(p.last_hidden, count, axis=0) for p, count in zip(prompts, repeats, strict=True)]
    return caches, mx.concatenate(hidden)


def _start(step: _Drawn, caches: Sequence[BatchCache | BatchState]) -> None:
    """Compute a step, without waiting for it."""
    _compute(caches, step.tokens_B, step.logprobs_B)


def _compute(caches: Sequence[BatchCache | BatchState], *results: mx.array) -> None:
    """Compute these and the caches they leave behind, without waiting for them.

    Not before the step before has ended: its arrays are then free, and keys and values are written in place. Two
    steps under way at once copy every cache at every step (seen in peak memory, on the CPU; Metal too holds on to
    what a command buffer reads), which costs more than the wait.
    """
    arrays = [cache.arrays for cache in caches]
    mx.async_eval(*results, arrays)  # type: ignore[no-untyped-call]

"""One GRPO step's gradient: groups and their advantages -> loss, gradients, metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import mlx.core as mx
import numpy as np

from mlx_sumrl.config import GrpoConfig, SamplingConfig
from mlx_sumrl.policy.logprobs import TokenBatch, completion_logprobs, token_batch
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.policy.shared_prefix import GroupBatch, group_batch, group_logprobs
from mlx_sumrl.rollouts.types import Completion, Group
from mlx_sumrl.training.advantages import FloatArray
from mlx_sumrl.training.gradient import BatchGradient, Share, batch_gradient
from mlx_sumrl.training.loss import LossInputs, Normalizer, grpo_loss


@dataclass(frozen=True)
class TrainingRow:
    """One completion with its own prompt and its advantage: what cannot come apart any more."""

    prompt_ids: tuple[int, ...]
    completion: Completion
    advantage: float


def training_rows(groups: Sequence[Group], advantages_PG: FloatArray) -> list[TrainingRow]:
    """The rows of a step, in order. Raises ValueError when groups and advantages do not match."""
    return [
        TrainingRow(group.example.prompt_ids, completion, float(advantage))
        for group, advantages in zip(groups, advantages_PG, strict=True)
        for completion, advantage in zip(group.completions, advantages, strict=True)
    ]


def grpo_gradient(
    policy: Policy, rows: Sequence[TrainingRow], options: GrpoConfig, sampling: SamplingConfig
) -> BatchGradient:
    """Loss of a step's completions and its gradient.

    Completions without an advantage have no gradient unless there is a KL term: then they are left out of the
    computation, but not out of the numbers that the loss is divided by.
    """
    normalizer = Normalizer(
        completions=len(rows),
        tokens=sum(len(row.completion.token_ids) for row in rows),
        max_tokens=sampling.max_tokens,
    )
    active = [row for row in rows if row.advantage != 0 or options.beta > 0]

    def logprobs(tokens: TokenBatch | GroupBatch) -> mx.array:
        compute = group_logprobs if isinstance(tokens, GroupBatch) else completion_logprobs
        return compute(
            policy.model,
            tokens,  # type: ignore[arg-type]
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            checkpointing=policy.options.gradient_checkpointing,
        )

    def micro_batches() -> Iterator[_MicroBatch]:
        for part in micro_batch_rows(active, options.micro_batch_rows, options.share_prompt):
            micro_batch = _micro_batch(part, options.share_prompt)
            if options.beta > 0:
                with policy.as_reference():
                    reference = mx.stop_gradient(logprobs(micro_batch.tokens))
                    mx.eval(reference)
                micro_batch = replace(micro_batch, reference_logprobs_BT=reference)
            yield micro_batch

    def share(micro_batch: _MicroBatch) -> Share:
        inputs = LossInputs(
            logprobs_BT=logprobs(micro_batch.tokens),
            sampler_logprobs_BT=micro_batch.sampler_logprobs_BT,
            advantages_B=micro_batch.advantages_B,
            mask_BT=micro_batch.mask_BT,
            reference_logprobs_BT=micro_batch.reference_logprobs_BT,
        )
        return grpo_loss(inputs, options, normalizer)

    return batch_gradient(policy, micro_batches(), share)


def micro_batch_rows(
    rows: Sequence[TrainingRow], size: int, share_prompt: bool
) -> Iterator[Sequence[TrainingRow]]:
    """The rows in parts of at most ``size``: of one prompt each, or of like length, which leaves less padding."""
    if not share_prompt:
        rows = sorted(rows, key=lambda row: len(row.prompt_ids) + len(row.completion.token_ids))
        for start in range(0, len(rows), size):
            yield rows[start : start + size]
        return
    for _, group in groupby(rows, key=lambda row: row.prompt_ids):
        own = sorted(group, key=lambda row: len(row.completion.token_ids))
        for start in range(0, len(own), size):
            yield own[start : start + size]


@dataclass(frozen=True)
class _MicroBatch:
    """Rows that go through the model together, and all of the loss's inputs that are known before."""

    tokens: TokenBatch | GroupBatch
    mask_BT: mx.array
    sampler_logprobs_BT: mx.array
    advantages_B: mx.array
    reference_logprobs_BT: mx.array | None = None


def _micro_batch(rows: Sequence[TrainingRow], share_prompt: bool) -> _MicroBatch:
    completions = [row.completion.token_ids for row in rows]
    tokens: TokenBatch | GroupBatch
    if share_prompt:
        tokens = group_batch(rows[0].prompt_ids, completions)
        mask = tokens.mask_GT
    else:
        tokens = token_batch([row.prompt_ids for row in rows], completions)
        mask = tokens.mask_BT
    sampled = np.zeros(mask.shape, np.float32)
    for i, row in enumerate(rows):
        if len(row.completion.logprobs) != len(row.completion.token_ids):
            raise ValueError(
                f"a completion of {len(row.completion.token_ids)} tokens came with "
                f"{len(row.completion.logprobs)} log-probabilities"
            )
        sampled[i, : len(row.completion.logprobs)] = row.completion.logprobs
    return _MicroBatch(
        tokens, mask, mx.array(sampled), mx.array([row.advantage for row in rows], dtype=mx.float32)
    )

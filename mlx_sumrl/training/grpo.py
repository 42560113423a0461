"""One GRPO step's gradient: groups and their advantages -> loss, gradients, metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from mlx_sumrl.config import GrpoConfig, SamplingConfig
from mlx_sumrl.policy.blocks import packed_logprobs
from mlx_sumrl.policy.head import HeadOptions
from mlx_sumrl.policy.packing import PackedRows, micro_batches, pack
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.rollouts.types import Completion, Group
from mlx_sumrl.training.advantages import FloatArray
from mlx_sumrl.training.gradient import batch_gradient
from mlx_sumrl.training.loss import LossInputs, Normalizer, grpo_loss
from mlx_sumrl.training.micro_batch import BatchGradient, MicroBatch


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
    head = HeadOptions(
        policy.options.logits_mb * 1_000_000, sampling.temperature, sampling.top_p, sampling.top_k
    )
    ids = [(row.prompt_ids, row.completion.token_ids) for row in active]
    in_pieces = policy.options.gradient_checkpointing
    parts = [
        ([active[i] for i in part], pack([ids[i] for i in part], options.share_prompt, in_pieces))
        for part in micro_batches(ids, options.share_prompt, options.micro_batch_tokens)
    ]
    references: list[mx.array | None] = [None] * len(parts)
    if options.beta > 0:
        with policy.as_reference():
            for place, (_, packed) in enumerate(parts):
                references[place] = packed_logprobs(policy.model, packed, head, differentiable=False)
                mx.eval(references[place])

    def batch(part: Sequence[TrainingRow], packed: PackedRows, reference: mx.array | None) -> MicroBatch:
        known = LossInputs(
            logprobs_BT=packed.mask_BT,
            sampler_logprobs_BT=_sampled(part, packed.mask_BT.shape),
            advantages_B=mx.array([row.advantage for row in part], dtype=mx.float32),
            mask_BT=packed.mask_BT,
            reference_logprobs_BT=reference,
        )
        return MicroBatch(
            packed, lambda logprobs: grpo_loss(replace(known, logprobs_BT=logprobs), options, normalizer)
        )

    batches = [
        batch(part, packed, reference) for (part, packed), reference in zip(parts, references, strict=True)
    ]
    return batch_gradient(policy, batches, head)


def _sampled(rows: Sequence[TrainingRow], shape: tuple[int, ...]) -> mx.array:
    """Log-probabilities [B, T] as the sampler wrote them down, 0 at padding."""
    sampled = np.zeros(shape, np.float32)
    for i, row in enumerate(rows):
        if len(row.completion.logprobs) != len(row.completion.token_ids):
            raise ValueError(
                f"a completion of {len(row.completion.token_ids)} tokens came with "
                f"{len(row.completion.logprobs)} log-probabilities"
            )
        sampled[i, : len(row.completion.logprobs)] = row.completion.logprobs
    return mx.array(sampled)

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
from mlx_sumrl.training.advantages import Advantages
from mlx_sumrl.training.gradient import batch_gradient
from mlx_sumrl.training.loss import LossInputs, Normalizer, StopInputs, grpo_loss
from mlx_sumrl.training.micro_batch import BatchGradient, MicroBatch, Share


@dataclass(frozen=True)
class TrainingRow:
    """One completion with its own prompt and its advantage: what cannot come apart any more."""

    prompt_ids: tuple[int, ...]
    completion: Completion
    advantage: float
    stop_advantage: float | None = None
    """Of stopping or going on, where that is another than of what is said; see `Advantages`."""

    @property
    def teaches(self) -> bool:
        """Whether anything has an advantage."""
        return self.advantage != 0 or self.stop_advantage not in (None, 0)


def training_rows(groups: Sequence[Group], advantages: Advantages) -> list[TrainingRow]:
    """The rows of a step, in order. Raises ValueError when groups and advantages do not match."""
    stop_PG = advantages.stop_PG
    return [
        TrainingRow(group.example.prompt_ids, completion, float(own), None if stop is None else float(stop))
        for p, (group, own_G) in enumerate(zip(groups, advantages.values_PG, strict=True))
        for completion, own, stop in zip(
            group.completions, own_G, [None] * len(own_G) if stop_PG is None else stop_PG[p], strict=True
        )
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
    active = [row for row in rows if row.teaches or options.beta > 0]
    stop_ids = sorted(policy.stop_ids) if any(row.stop_advantage is not None for row in rows) else []
    head = HeadOptions(
        policy.options.logits_mb * 1_000_000, sampling.temperature, sampling.top_p, sampling.top_k
    )
    ids = [(row.prompt_ids, row.completion.token_ids) for row in active]
    in_pieces = policy.options.gradient_checkpointing
    parts = [
        ([active[i] for i in part], pack([ids[i] for i in part], options.share_prompt, in_pieces, stop_ids))
        for part in micro_batches(ids, options.share_prompt, options.micro_batch_tokens)
    ]
    references: list[mx.array | None] = [None] * len(parts)
    if options.beta > 0:
        with policy.as_reference():
            for place, (_, packed) in enumerate(parts):
                references[place] = packed_logprobs(
                    policy.model, packed.without_stops, head, differentiable=False
                )
                mx.eval(references[place])

    def batch(part: Sequence[TrainingRow], packed: PackedRows, reference: mx.array | None) -> MicroBatch:
        known = LossInputs(
            logprobs_BT=packed.mask_BT,
            sampler_logprobs_BT=_sampled(part, packed.mask_BT.shape),
            advantages_B=mx.array([row.advantage for row in part], dtype=mx.float32),
            mask_BT=packed.mask_BT,
            reference_logprobs_BT=reference,
        )
        if not stop_ids:
            return MicroBatch(
                packed, lambda logprobs: grpo_loss(replace(known, logprobs_BT=logprobs), options, normalizer)
            )
        stops_B = mx.array([row.stop_advantage or 0.0 for row in part], dtype=mx.float32)
        stopped_BT = _stopped(part, packed.mask_BT.shape, stop_ids)

        def share(logprobs_KBT: mx.array) -> Share:
            stops = StopInputs(mx.logsumexp(logprobs_KBT[1:], axis=0), stopped_BT, stops_B)
            return grpo_loss(replace(known, logprobs_BT=logprobs_KBT[0], stops=stops), options, normalizer)

        return MicroBatch(packed, share)

    batches = [
        batch(part, packed, reference) for (part, packed), reference in zip(parts, references, strict=True)
    ]
    return batch_gradient(policy, batches, head)


def _stopped(rows: Sequence[TrainingRow], shape: tuple[int, ...], stop_ids: Sequence[int]) -> mx.array:
    """1 where a completion has its stop token, [B, T]."""
    stopped = np.zeros(shape, np.float32)
    for i, row in enumerate(rows):
        last = len(row.completion.token_ids) - 1
        stopped[i, last] = row.completion.token_ids[last] in stop_ids
    return mx.array(stopped)


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

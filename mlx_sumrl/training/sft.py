"""Supervised fine-tuning: the answer's tokens, its stop token among them, given the prompt.

The loss is the mean over all answer tokens of the batch, so that it does not depend on how the batch is split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mlx_sumrl.data.answers import answer_ids
from mlx_sumrl.data.example import Example
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.blocks import packed_logprobs
from mlx_sumrl.policy.head import HeadOptions
from mlx_sumrl.policy.packing import PackedRows, Row, micro_batches, pack
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.training.gradient import batch_gradient
from mlx_sumrl.training.micro_batch import BatchGradient, MicroBatch


def with_answers(examples: Sequence[Example], column: str | None) -> Sequence[Example]:
    """The examples with another column's text as their reference. Raises `UserError` where one has none."""
    if column is None:
        return examples
    answered = []
    for example in examples:
        answer = example.fields.get(column)
        if not isinstance(answer, str) or not answer.strip():
            raise UserError(
                f"sft.reference_column {column!r} is empty or missing in row {example.id}; "
                f"its columns are {', '.join(example.fields)}"
            )
        answered.append(replace(example, reference=answer.strip()))
    return answered


def sft_gradient(policy: Policy, examples: Sequence[Example], micro_batch_tokens: int) -> BatchGradient:
    """Mean cross-entropy in nats per answer token of these examples, and its gradient."""
    rows = _rows(policy, examples)
    tokens = sum(len(answer) for _, answer in rows)

    def batch(packed: PackedRows) -> MicroBatch:
        return MicroBatch(
            packed, lambda logprobs: (-logprobs.sum() / tokens, {"tokens": packed.mask_BT.sum()})
        )

    return batch_gradient(
        policy, [batch(p) for p in _packed(policy, rows, micro_batch_tokens)], _head(policy)
    )


def sft_loss(policy: Policy, examples: Sequence[Example], micro_batch_tokens: int) -> float:
    """Mean cross-entropy in nats per answer token, without a gradient."""
    rows = _rows(policy, examples)
    total = 0.0
    for packed in _packed(policy, rows, micro_batch_tokens):
        logprobs_BT = packed_logprobs(policy.model, packed, _head(policy), differentiable=False)
        total -= float(logprobs_BT.sum().item())  # type: ignore[arg-type]
    return total / max(sum(len(answer) for _, answer in rows), 1)


def _rows(policy: Policy, examples: Sequence[Example]) -> list[Row]:
    return [
        (example.prompt_ids, answer_ids(policy.tokenizer, example.reference, policy.stop_id))
        for example in examples
    ]


def _packed(policy: Policy, rows: Sequence[Row], tokens: int) -> list[PackedRows]:
    # Prompts are hardly ever alike here, and rows of like length then share a micro-batch.
    in_pieces = policy.options.gradient_checkpointing
    return [pack([rows[i] for i in part], False, in_pieces) for part in micro_batches(rows, False, tokens)]


def _head(policy: Policy) -> HeadOptions:
    return HeadOptions(budget=policy.options.logits_mb * 1_000_000)

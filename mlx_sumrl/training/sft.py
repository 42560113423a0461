"""Supervised fine-tuning: the answer's tokens, its stop token among them, given the prompt.

The loss is the mean over all answer tokens of the batch, so that it does not depend on how the batch is split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import mlx.core as mx

from mlx_sumrl.data.answers import answer_ids
from mlx_sumrl.data.example import Example
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.logprobs import TokenBatch, completion_logprobs, token_batch
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.training.gradient import BatchGradient, Share, batch_gradient


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


def sft_gradient(policy: Policy, examples: Sequence[Example], micro_batch_rows: int) -> BatchGradient:
    """Mean cross-entropy in nats per answer token of these examples, and its gradient."""
    pairs = [
        (example.prompt_ids, answer_ids(policy.tokenizer, example.reference, policy.stop_id))
        for example in examples
    ]
    tokens = sum(len(answer) for _, answer in pairs)
    # Rows of like length side by side leave less padding; the sum does not mind the order.
    pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))

    def micro_batches() -> Iterator[TokenBatch]:
        for start in range(0, len(pairs), micro_batch_rows):
            part = pairs[start : start + micro_batch_rows]
            yield token_batch([prompt for prompt, _ in part], [answer for _, answer in part])

    def share(batch: TokenBatch) -> Share:
        logprobs_BT = completion_logprobs(
            policy.model, batch, checkpointing=policy.options.gradient_checkpointing
        )
        return -logprobs_BT.sum() / tokens, {"tokens": batch.mask_BT.sum()}

    return batch_gradient(policy, micro_batches(), share)


def sft_loss(policy: Policy, examples: Sequence[Example], micro_batch_rows: int) -> float:
    """Mean cross-entropy in nats per answer token, without a gradient."""
    total, tokens = mx.array(0.0), 0
    for start in range(0, len(examples), micro_batch_rows):
        part = examples[start : start + micro_batch_rows]
        answers = [answer_ids(policy.tokenizer, example.reference, policy.stop_id) for example in part]
        batch = token_batch([example.prompt_ids for example in part], answers)
        total = total - completion_logprobs(policy.model, batch).sum()
        tokens += sum(len(answer) for answer in answers)
        mx.eval(total)
    return float(total.item()) / max(tokens, 1)  # type: ignore[arg-type]

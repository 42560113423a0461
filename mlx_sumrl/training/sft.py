"""Supervised fine-tuning: the tokens of an answer that are to be learned, given what stands before them.

The loss is the mean over all learned tokens of the batch, so that it does not depend on how the batch is split.
With label smoothing e a target is (1 - e) the token and e an even share of the vocabulary (Szegedy et al. 2016,
arXiv:1512.00567, section 7): -(1 - e) log p(y) - e mean_v log p(v).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mlx_sumrl.data.answers import answer_ids
from mlx_sumrl.data.example import Example
from mlx_sumrl.data.supervised_example import SupervisedExample
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.blocks import packed_logprobs
from mlx_sumrl.policy.head import HeadOptions
from mlx_sumrl.policy.packing import PackedRows, Row, learning, micro_batches, pack
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


def answered(policy: Policy, example: Example) -> SupervisedExample:
    """The example with its reference and a stop token as what is learned."""
    ids = answer_ids(policy.tokenizer, example.reference, policy.stop_id)
    return SupervisedExample(example.id, example.prompt_ids, ids, (True,) * len(ids))


def sft_gradient(policy: Policy, examples: Sequence[Example], micro_batch_tokens: int) -> BatchGradient:
    """Mean cross-entropy in nats per answer token of these examples, and its gradient."""
    return supervised_gradient(policy, [answered(policy, one) for one in examples], micro_batch_tokens)


def sft_loss(policy: Policy, examples: Sequence[Example], micro_batch_tokens: int) -> float:
    """Mean cross-entropy in nats per answer token, without a gradient."""
    return supervised_loss(policy, [answered(policy, one) for one in examples], micro_batch_tokens)


def supervised_gradient(
    policy: Policy, examples: Sequence[SupervisedExample], micro_batch_tokens: int, smoothing: float = 0.0
) -> BatchGradient:
    """Mean smoothed cross-entropy in nats per learned token, and its gradient; ``sums`` has their number."""
    tokens = learned_tokens(examples)

    def batch(packed: PackedRows) -> MicroBatch:
        return MicroBatch(
            packed, lambda logprobs: (-logprobs.sum() / tokens, {"tokens": packed.mask_BT.sum()})
        )

    parts = [batch(packed) for packed in _packed(policy, examples, micro_batch_tokens)]
    return batch_gradient(policy, parts, _head(policy, smoothing))


def supervised_loss(
    policy: Policy, examples: Sequence[SupervisedExample], micro_batch_tokens: int, smoothing: float = 0.0
) -> float:
    """Mean cross-entropy in nats per learned token, smoothed or not, without a gradient and without dropout."""
    model, training, total = policy.model, policy.model.training, 0.0
    model.eval()
    try:
        for packed in _packed(policy, examples, micro_batch_tokens):
            logprobs_BT = packed_logprobs(model, packed, _head(policy, smoothing), differentiable=False)
            total -= float(logprobs_BT.sum().item())  # type: ignore[arg-type]
    finally:
        model.train(training)
    return total / max(learned_tokens(examples), 1)


def learned_tokens(examples: Sequence[SupervisedExample]) -> int:
    """How many tokens count in the loss."""
    return sum(sum(example.trained) for example in examples)


def _packed(policy: Policy, examples: Sequence[SupervisedExample], tokens: int) -> list[PackedRows]:
    # What follows the last learned token changes nothing.
    ends = [len(one.trained) - one.trained[::-1].index(True) for one in examples]
    rows: list[Row] = [
        (one.prompt_ids, one.answer_ids[:end]) for one, end in zip(examples, ends, strict=True)
    ]
    learned = [one.trained[:end] for one, end in zip(examples, ends, strict=True)]
    # Prompts are hardly ever alike here, and rows of like length then share a micro-batch.
    in_pieces = policy.options.gradient_checkpointing
    return [
        learning(pack([rows[i] for i in part], False, in_pieces), [learned[i] for i in part])
        for part in micro_batches(rows, False, tokens)
    ]


def _head(policy: Policy, smoothing: float) -> HeadOptions:
    return HeadOptions(budget=policy.options.logits_mb * 1_000_000, smoothing=smoothing)

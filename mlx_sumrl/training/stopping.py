"""When to stop, taught before it is paid for: supervised learning of the decisions about stopping, and of nothing else.

Whether a text should stop after its n-th token is known from the length that was asked for, whatever it says: not yet
while n is below it, now once n is above it. So every token of any text is a labelled example of that decision, where a
reward speaks once for a whole completion, and only by comparison with the others of its group. The texts here are other
people's summaries one after the other, longer than any length asked for; the documents may be cut short, since counting
does not need them.

The loss of a decision is its cross-entropy, -log p(stop) or -log(1 - p(stop)), and the batch's is the mean over all of
its decisions. Its gradient goes through the probability of stopping alone: no word is taught. Our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.config import LengthConfig
from mlx_sumrl.data.answers import answer_ids
from mlx_sumrl.data.example import Example
from mlx_sumrl.metrics.sentences import ends_sentence
from mlx_sumrl.policy.head import HeadOptions
from mlx_sumrl.policy.packing import PackedRows, Row, micro_batches, pack
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.training.gradient import batch_gradient
from mlx_sumrl.training.loss import decision_logprobs
from mlx_sumrl.training.micro_batch import BatchGradient, MicroBatch, Share

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BEYOND = 4
"""Tokens of a text beyond the last at which any length may still be met."""
TAIL = 4
"""Tokens in which an end mark and the quotes and brackets behind it have room."""


def stop_labels(ends: Sequence[bool], length: LengthConfig) -> NDArray[np.bool_]:
    """Whether to stop before each of T tokens, from whether a sentence ends there (``ends``). Shape [T].

    Right is the first end of a sentence from one token within what is allowed on, and where there is none, half of what
    is allowed beyond the target: who miscounts by a token or two is within all the same.
    """
    written_T = np.arange(len(ends))
    soon = length.target - max(length.allowed - 1, 0)
    late = length.target + length.allowed // 2
    return (written_T >= late) | ((written_T >= soon) & np.asarray(ends, bool))


def sentence_ends(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> list[bool]:
    """Whether a sentence ends before each token: whether the few before it end with an end mark and what closes."""
    tails = [tokenizer.decode(ids[max(i - TAIL, 0) : i]) for i in range(len(ids))]
    return [ends_sentence(str(tail)) for tail in tails]


def text_tokens(length: LengthConfig) -> int:
    """How long the texts are that stopping is learned from."""
    return length.longest + length.asked(length.longest).allowed + BEYOND


def running_texts(policy: Policy, examples: Sequence[Example], tokens: int) -> list[tuple[int, ...]]:
    """For each example its summary, those of the next examples after it, and so on round, cut to so many ``tokens``."""
    texts = []
    for i in range(len(examples)):
        following = cycle([*examples[i:], *examples[:i]])
        text = next(following).reference
        while len(ids := answer_ids(policy.tokenizer, text, policy.stop_id)[:-1]) < tokens:
            text += " " + next(following).reference
        texts.append(tuple(ids[:tokens]))
    return texts


def stopping_gradient(
    policy: Policy, examples: Sequence[Example], length: LengthConfig, micro_batch_tokens: int
) -> BatchGradient:
    """Mean cross-entropy in nats per decision on running texts of these examples, and its gradient.

    ``length`` is what a prompt without a target of its own asks for. ``sums`` has the number of decisions (``tokens``),
    and in how many of them the more probable was the right one (``right``).
    """
    texts = running_texts(policy, examples, text_tokens(length))
    labels = [
        stop_labels(sentence_ends(policy.tokenizer, text), length.asked(example.target))
        for example, text in zip(examples, texts, strict=True)
    ]
    rows: list[Row] = [(example.prompt_ids, text) for example, text in zip(examples, texts, strict=True)]
    decisions = sum(map(len, labels))
    in_pieces, stop_ids = policy.options.gradient_checkpointing, sorted(policy.stop_ids)

    def batch(part: list[int]) -> MicroBatch:
        packed: PackedRows = pack([rows[i] for i in part], False, in_pieces, stop_ids)
        labels_BT = mx.array(np.stack([labels[i] for i in part]))

        def share(logprobs_KBT: mx.array) -> Share:
            right_BT = decision_logprobs(mx.logsumexp(logprobs_KBT[1:], axis=0), labels_BT)
            right = (mx.stop_gradient(right_BT) > np.log(0.5)).sum().astype(mx.float32)
            return -right_BT.sum() / decisions, {"tokens": packed.mask_BT.sum(), "right": right}

        return MicroBatch(packed, share)

    parts = [batch(part) for part in micro_batches(rows, False, micro_batch_tokens)]
    return batch_gradient(policy, parts, HeadOptions(policy.options.logits_mb * 1_000_000))

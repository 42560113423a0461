"""When to stop, taught before it is paid for: supervised learning of the decisions about stopping, and of nothing else.

Whether a text should stop after its n-th token is known from the length that was asked for, whatever it says: not yet
while n is below it, now once n is above it. So every token of any text is a labelled example of that decision, where a
reward speaks once for a whole completion, and only by comparison with the others of its group. The texts here are other
people's summaries one after the other, longer than any length asked for. At first their documents are cut short, since
counting does not need them.

The loss of a decision is its cross-entropy, -log p(stop) or -log(1 - p(stop)), whose gradient goes through the
probability of stopping alone: no word is taught. But all share the same weights, and words would drift (sampled METEOR
fell from .31 to .11). So they are held where they are: with c the probability of a token given that the text goes on,
and c_ref that under the policy as it was before the phase, ``anchor`` times (log c - log c_ref)^2 / 2 is added. A
batch's loss is the mean over its decisions. Our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.config import LengthConfig, StoppingConfig
from mlx_sumrl.data.answers import answer_ids
from mlx_sumrl.data.example import Example
from mlx_sumrl.errors import UserError
from mlx_sumrl.metrics.sentences import ends_sentence
from mlx_sumrl.policy.blocks import packed_logprobs
from mlx_sumrl.policy.head import HeadOptions
from mlx_sumrl.policy.packing import Row, micro_batches, pack
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

    Right is the first end of a sentence that is within what is allowed by two tokens, and where there is none, two
    tokens before what is allowed ends: who miscounts a little is within all the same. (By one token, all summaries
    that missed 64 ± 5 were too short: 27 of 600 dialogues.)
    """
    written_T = np.arange(len(ends))
    soon = length.target - max(length.allowed - 2, 0)
    late = length.target + max(length.allowed - 2, 0)
    right_T: NDArray[np.bool_] = (written_T >= late) | ((written_T >= soon) & np.asarray(ends, bool))
    return right_T


def sentence_ends(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> list[bool]:
    """Whether a sentence ends before each token: whether the few before it end with an end mark and what closes."""
    tails = [tokenizer.decode(ids[max(i - TAIL, 0) : i]) for i in range(len(ids))]
    return [ends_sentence(str(tail)) for tail in tails]


def text_tokens(length: LengthConfig) -> int:
    """How long the texts are that stopping is learned from."""
    return length.longest + length.asked(length.longest).allowed + BEYOND


def running_texts(policy: Policy, examples: Sequence[Example], tokens: int) -> list[tuple[int, ...]]:
    """For each example its summary, those of the next examples after it, and so on round, cut to so many ``tokens``.

    Raises `UserError` where none has a summary.
    """
    if not any(example.reference.strip() for example in examples):
        raise UserError(
            "stopping is learned from the summaries of the examples, and none of these has one: give them a reference, "
            "or give `stopping: null`"
        )
    texts = []
    for i in range(len(examples)):
        following = cycle([*examples[i:], *examples[:i]])
        text = next(following).reference
        while len(ids := answer_ids(policy.tokenizer, text, policy.stop_id)[:-1]) < tokens:
            text += " " + next(following).reference
        texts.append(tuple(ids[:tokens]))
    return texts


def stopping_gradient(
    policy: Policy,
    examples: Sequence[Example],
    length: LengthConfig,
    options: StoppingConfig,
    micro_batch_tokens: int,
) -> BatchGradient:
    """Mean loss per decision on running texts of these examples, and its gradient.

    ``length`` is what a prompt without a target of its own asks for, ``micro_batch_tokens`` the most token positions in
    one pass. ``sums`` has the number of decisions (``tokens``), in how many of them the more probable was the right one
    (``right``), their cross-entropy in nats (``nats``), and by how much words have drifted (``drift``, the sum of
    |log c - log c_ref|). All at temperature 1.

    Raises `UserError` where no example has a summary, and RuntimeError where full training has no reference.
    """
    texts = running_texts(policy, examples, text_tokens(length))
    labels = [
        stop_labels(sentence_ends(policy.tokenizer, text), length.asked(example.target))
        for example, text in zip(examples, texts, strict=True)
    ]
    rows: list[Row] = [(example.prompt_ids, text) for example, text in zip(examples, texts, strict=True)]
    decisions = sum(map(len, labels))
    in_pieces, stop_ids = policy.options.gradient_checkpointing, sorted(policy.stop_ids)
    head = HeadOptions(policy.options.logits_mb * 1_000_000)

    def batch(part: list[int]) -> MicroBatch:
        packed = pack([rows[i] for i in part], False, in_pieces, stop_ids)
        labels_BT = mx.array(np.stack([labels[i] for i in part]))
        with policy.as_reference():
            held_BT = _words(packed_logprobs(policy.model, packed, head, differentiable=False))
            mx.eval(held_BT)

        def share(logprobs_KBT: mx.array) -> Share:
            losses_BT = -decision_logprobs(_stop(logprobs_KBT), labels_BT)
            drift_BT = _words(logprobs_KBT) - held_BT
            sums = {
                "tokens": packed.mask_BT.sum(),
                "right": (losses_BT < np.log(2)).sum().astype(mx.float32),
                "nats": losses_BT.sum(),
                "drift": mx.abs(drift_BT).sum(),
            }
            loss = (losses_BT + options.anchor * mx.square(drift_BT) / 2).sum() / decisions
            return loss, {name: mx.stop_gradient(array) for name, array in sums.items()}

        return MicroBatch(packed, share)

    parts = [batch(part) for part in micro_batches(rows, False, micro_batch_tokens)]
    return batch_gradient(policy, parts, head)


def _stop(logprobs_KBT: mx.array) -> mx.array:
    """log p [B, T] of any stop token."""
    return mx.logsumexp(logprobs_KBT[1:], axis=0)


def _words(logprobs_KBT: mx.array) -> mx.array:
    """log p [B, T] of each token of the text, given that it goes on."""
    return logprobs_KBT[0] - decision_logprobs(_stop(logprobs_KBT), mx.array(False))

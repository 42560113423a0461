"""How likely a text is to another model than the one that wrote it: noise of the asked length is not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx

from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.blocks import packed_logprobs
from mlx_sumrl.policy.head import HeadOptions
from mlx_sumrl.policy.packing import Row, micro_batches, pack
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.rollouts.types import Group

MICRO_BATCH_TOKENS = 4096
"""Positions computed at once."""


def perplexities(policy: Policy, groups: Sequence[Group]) -> list[float | None]:
    """exp(-mean log p) per token of each completion after its prompt, under this policy, group by group.

    Without the stop token, which a text that was cut does not have; None for one without any other token. The policy
    has to be of the same tokenizer as the one that sampled: token ids are taken as they are.

    Raises:
        UserError: a completion has a token id that the policy does not know.
    """
    rows: list[Row] = [
        (group.example.prompt_ids, completion.content_ids)
        for group in groups
        for completion in group.completions
    ]
    highest = max((max((*prompt, *ids)) for prompt, ids in rows), default=0)
    if highest >= policy.vocabulary:
        raise UserError(
            f"{policy.source} has {policy.vocabulary} tokens and the completions have number {highest}: perplexity "
            "needs a model with the tokenizer of the one that wrote them"
        )
    found: list[float | None] = [None] * len(rows)
    written = [place for place, (_, ids) in enumerate(rows) if ids]
    options = HeadOptions(budget=policy.options.logits_mb * 1_000_000)
    training = policy.model.training
    policy.model.eval()
    try:
        for part in micro_batches([rows[place] for place in written], True, MICRO_BATCH_TOKENS):
            places = [written[i] for i in part]
            packed = pack([rows[place] for place in places], True)
            logprobs_BT = packed_logprobs(policy.model, packed, options, differentiable=False)
            sums_B: list[float] = logprobs_BT.astype(mx.float32).sum(axis=-1).tolist()  # type: ignore[assignment]
            for place, total in zip(places, sums_B, strict=True):
                found[place] = math.exp(min(-total / len(rows[place][1]), 700.0))
    finally:
        policy.model.train(training)
    return found

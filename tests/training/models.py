"""Tiny policies, rows of completions for them, and gradients the plain way: one row at a time, unpadded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map, tree_unflatten

from mlx_sumrl.config import PolicyConfig, TinyModelConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.policy import Policy, Weights
from mlx_sumrl.policy.tiny import qwen2_config
from mlx_sumrl.rollouts.types import Completion
from mlx_sumrl.training.grpo import TrainingRow
from tests.families import full_logits, log_softmax

from .oracle import Ragged

STOP = 2


def tiny_policy(
    *,
    tuning: str = "full",
    checkpointing: bool = False,
    vocabulary: int = 48,
    tokenizer: Any = None,
    dtype: mx.Dtype = mx.float32,
    seed: int = 0,
    layers: int = 2,
    adapted: int = -1,
    dropout: float = 0.0,
) -> Policy:
    """Hidden size 32; the same seed gives the same weights. Adapters, in the last blocks, start away from 0."""
    config = qwen2_config(TinyModelConfig(hidden_size=32, layers=layers, heads=4), vocabulary, STOP)
    mx.random.seed(seed)
    model = mlx_internals.new_model(config)
    model.update(tree_map(lambda array: array.astype(dtype), model.parameters()))
    if tuning == "full":
        model.unfreeze()
    else:
        model.freeze()
        mlx_internals.add_adapters(
            model,
            rank=3,
            scale=2.0,
            dropout=dropout,
            layers=adapted,
            keys=mlx_internals.linear_names(model),
            dora=tuning == "dora",
        )
    policy = Policy(
        model=model,
        tokenizer=tokenizer,
        config=config,
        folder=Path("tiny"),
        options=PolicyConfig(model="tiny", tuning=tuning, gradient_checkpointing=checkpointing),
        stop_ids=frozenset({STOP}),
        stop_id=STOP,
    )
    if tuning != "full":
        policy.set_weights(moved(policy.weights(), 0.1, seed=seed + 1))
    model.eval()
    mx.eval(model.parameters())
    return policy


def moved(weights: Weights, size: float, seed: int) -> Weights:
    """Weights with normal noise of this size added."""
    rng = np.random.default_rng(seed)
    return {
        name: array + mx.array(rng.normal(scale=size, size=array.shape)).astype(array.dtype)
        for name, array in weights.items()
    }


def plain_logprobs(
    model: nn.Module, prompt: Sequence[int], completion: Sequence[int], temperature: float = 1.0
) -> mx.array:
    """log p of each completion token: the whole model on one unpadded row, and a log-softmax."""
    logits = model(mx.array([[*prompt, *completion]]))[0].astype(mx.float32) / temperature
    table = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    start = len(prompt) - 1
    return mx.stack([table[start + t, token] for t, token in enumerate(completion)])


def logprobs_of(policy: Policy, rows: Sequence[TrainingRow], temperature: float = 1.0) -> Ragged:
    return [
        plain_logprobs(policy.model, row.prompt_ids, row.completion.token_ids, temperature).tolist()
        for row in rows
    ]


def weighted_gradient(
    policy: Policy, rows: Sequence[TrainingRow], weights: Ragged, temperature: float = 1.0
) -> Weights:
    """Gradient of sum of weight x log p over all tokens, each row by itself."""
    own, total = policy.weights(), None

    def weighted(parameters: Weights, row: TrainingRow, row_weights: mx.array) -> mx.array:
        policy.model.update(tree_unflatten(list(parameters.items())))
        logprobs = plain_logprobs(policy.model, row.prompt_ids, row.completion.token_ids, temperature)
        return (logprobs * row_weights).sum()

    for row, row_weights in zip(rows, weights, strict=True):
        gradient = mx.grad(weighted)(own, row, mx.array(row_weights))
        total = gradient if total is None else {name: total[name] + gradient[name] for name in gradient}
        mx.eval(total)
    policy.model.update(tree_unflatten(list(own.items())))
    assert total is not None
    return total


def answer_loss(policy: Policy, examples: Sequence[Example]) -> tuple[float, int]:
    """Mean cross-entropy of the references' tokens and a stop token, and how many there are.

    In numpy's float64, from the logits of the whole model on one row at a time.
    """
    nats: list[float] = []
    for example in examples:
        answer = [*policy.tokenizer.encode(example.reference, add_special_tokens=False), policy.stop_id]
        table = log_softmax(full_logits(policy, [*example.prompt_ids, *answer]))
        nats += [-table[len(example.prompt_ids) - 1 + t, token] for t, token in enumerate(answer)]
    return sum(nats) / len(nats), len(nats)


def flat(weights: Weights) -> np.ndarray:
    """All numbers in one float64 vector, by name."""
    return np.concatenate(
        [np.array(weights[name].astype(mx.float32), np.float64).ravel() for name in sorted(weights)]
    )


def completion(ids: Sequence[int], logprobs: Sequence[float]) -> Completion:
    reason = "stop" if ids[-1] == STOP else "length"
    return Completion(tuple(ids), tuple(logprobs), reason, 0, "")


def random_rows(policy: Policy, *, staleness: float, seed: int = 0) -> list[TrainingRow]:
    """4 prompts of different lengths with 3 completions each, of 1 to 7 tokens, most of them stopped.

    The sampler's log-probabilities are the policy's with noise of size ``staleness``. One completion has no
    advantage, and neither has any of the last prompt's.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for place, (prompt_length, lengths) in enumerate(
        [(5, (4, 7, 1)), (9, (3, 2, 7)), (2, (6, 5, 4)), (4, (2, 6, 3))]
    ):
        prompt = tuple(int(token) for token in rng.integers(3, policy.vocabulary, prompt_length))
        for n in lengths:
            ids = [int(token) for token in rng.integers(3, policy.vocabulary, n)]
            if n < 7:
                ids[-1] = STOP
            advantage = 0.0 if place == 3 or n == 5 else float(rng.normal())
            logprobs = np.array(plain_logprobs(policy.model, prompt, ids)) + rng.normal(
                scale=staleness, size=n
            )
            rows.append(TrainingRow(prompt, completion(ids, logprobs.tolist()), advantage))
    return rows

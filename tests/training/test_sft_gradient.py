"""Supervised fine-tuning: the mean cross-entropy of answer tokens, stop token included, however it is split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mlx_sumrl.data.answers import answer_ids
from mlx_sumrl.data.example import Example
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.policy.tiny import STOP as STOP_NAME
from mlx_sumrl.policy.tiny import train_tokenizer
from mlx_sumrl.training.grpo import TrainingRow
from mlx_sumrl.training.sft import sft_gradient, sft_loss

from .models import STOP, completion, flat, logprobs_of, weighted_gradient
from .oracle import relative_error

TOLERANCE = 1e-5
REFERENCES = ("the cat sat", "a dog", "the dog ran to the cat and sat", "", "cat", "the dog sat on a cat")
MakePolicy = Callable[..., Policy]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer = train_tokenizer(REFERENCES, 300)
    assert tokenizer.convert_tokens_to_ids(STOP_NAME) == STOP
    return tokenizer


def make_examples() -> list[Example]:
    rng = np.random.default_rng(0)
    return [
        Example(f"row {i}", tuple(int(x) for x in rng.integers(3, 250, 2 + 3 * i % 7)), "", "", reference)
        for i, reference in enumerate(REFERENCES)
    ]


def plain_rows(policy: Policy, examples: list[Example]) -> list[TrainingRow]:
    answers = [answer_ids(policy.tokenizer, example.reference, policy.stop_id) for example in examples]
    assert all(answer[-1] == STOP for answer in answers)
    return [
        TrainingRow(example.prompt_ids, completion(answer, [0.0] * len(answer)), 1.0)
        for example, answer in zip(examples, answers, strict=True)
    ]


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_is_that_of_rows_one_by_one(
    make_policy: MakePolicy, tokenizer: Any, tuning: str, checkpointing: bool
) -> None:
    policy = make_policy(tuning=tuning, checkpointing=checkpointing, vocabulary=300, tokenizer=tokenizer)
    examples = make_examples()
    rows = plain_rows(policy, examples)
    logprobs = logprobs_of(policy, rows)
    tokens = sum(map(len, logprobs))
    loss = -sum(map(sum, logprobs)) / tokens
    truth = flat(weighted_gradient(policy, rows, [[-1 / tokens] * len(row) for row in logprobs]))
    for size in (1, 20, 30, 50, 4096):
        result = sft_gradient(policy, examples, size)
        assert result.loss == pytest.approx(loss, rel=1e-5)
        assert result.sums["tokens"] == tokens
        assert relative_error(flat(result.gradients), truth) < TOLERANCE, size
        assert sft_loss(policy, examples, size) == pytest.approx(loss, rel=1e-5)


def test_an_empty_reference_teaches_to_stop_at_once(make_policy: MakePolicy, tokenizer: Any) -> None:
    policy = make_policy(vocabulary=300, tokenizer=tokenizer)
    example = make_examples()[3]
    assert example.reference == ""
    rows = plain_rows(policy, [example])
    assert rows[0].completion.token_ids == (STOP,)
    truth = flat(weighted_gradient(policy, rows, [[-1.0]]))
    assert relative_error(flat(sft_gradient(policy, [example], 1).gradients), truth) < TOLERANCE


def test_the_prompt_itself_is_not_learned(make_policy: MakePolicy, tokenizer: Any) -> None:
    # A prompt twice as likely does not change the loss by a bit: only what follows it is counted.
    policy = make_policy(vocabulary=300, tokenizer=tokenizer)
    example = make_examples()[0]
    rows = plain_rows(policy, [example])
    answer = len(rows[0].completion.token_ids)
    assert sft_gradient(policy, [example], 1).sums["tokens"] == answer
    assert sft_loss(policy, [example], 1) == pytest.approx(
        -sum(logprobs_of(policy, rows)[0]) / answer, rel=1e-5
    )

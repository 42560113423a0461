"""`batch_gradient` leaves the model as it found it, whatever happens, and micro-batches add up."""

from __future__ import annotations

import sys
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from mlx_sumrl.config import GrpoConfig, SamplingConfig
from mlx_sumrl.policy.head import HeadOptions
from mlx_sumrl.policy.mlx_internals import ATTENTION
from mlx_sumrl.policy.packing import pack
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.training.gradient import batch_gradient
from mlx_sumrl.training.grpo import TrainingRow, grpo_gradient
from mlx_sumrl.training.micro_batch import MicroBatch, Share

from .models import completion, flat, plain_logprobs, random_rows, weighted_gradient

MakePolicy = Callable[..., Policy]
HEAD = HeadOptions(1_000_000)
both_ways = pytest.mark.parametrize("checkpointing", [False, True])


def micro_batch(i: int, fail_at: int | None = None) -> MicroBatch:
    """Micro-batch i: minus the log-probability of a token after a prompt of i + 1."""

    def share(logprobs_BT: mx.array) -> Share:
        if i == fail_at:
            raise RuntimeError("out of luck")
        return -logprobs_BT.sum(), {"tokens": mx.array(1.0)}

    return MicroBatch(pack([(tuple(range(3, 4 + i)), (7,))], share_prompt=True), share)


def micro_batches(fail_at: int | None = None) -> list[MicroBatch]:
    return [micro_batch(i, fail_at) for i in range(3)]


@both_ways
@pytest.mark.parametrize("fail_at", [0, 1])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_weights_are_untouched_when_a_share_raises(
    make_policy: MakePolicy, tuning: str, fail_at: int, checkpointing: bool
) -> None:
    policy = make_policy(tuning=tuning, checkpointing=checkpointing)
    before = policy.weights()
    numbers = flat(before)
    with pytest.raises(RuntimeError, match="out of luck"):
        batch_gradient(policy, micro_batches(fail_at), HEAD)
    after = policy.weights()
    assert all(after[name] is before[name] for name in before)  # the very arrays, nothing left by tracing
    np.testing.assert_array_equal(flat(after), numbers)
    assert not policy.model.training


@both_ways
def test_weights_are_untouched_when_all_is_well(make_policy: MakePolicy, checkpointing: bool) -> None:
    policy = make_policy(checkpointing=checkpointing)
    before = policy.weights()
    numbers = flat(before)
    result = batch_gradient(policy, micro_batches(), HEAD)
    assert result.gradients.keys() == before.keys()
    assert result.sums == {"tokens": 3.0}
    assert all(policy.weights()[name] is before[name] for name in before)
    np.testing.assert_array_equal(flat(policy.weights()), numbers)


@both_ways
def test_shares_add_up(make_policy: MakePolicy, checkpointing: bool) -> None:
    policy = make_policy(checkpointing=checkpointing)
    whole = batch_gradient(policy, micro_batches(), HEAD)
    parts = [batch_gradient(policy, [part], HEAD) for part in micro_batches()]
    assert whole.loss == pytest.approx(sum(part.loss for part in parts), rel=1e-6)
    total = sum(flat(part.gradients) for part in parts)
    np.testing.assert_allclose(flat(whole.gradients), total, rtol=1e-5, atol=1e-7)
    # And to what they should: the plain model, one row at a time.
    rows = [TrainingRow(tuple(range(3, 4 + i)), completion([7], [0.0]), 1.0) for i in range(3)]
    truth = flat(weighted_gradient(policy, rows, [[-1.0]] * 3))
    assert np.linalg.norm(flat(whole.gradients) - truth) < 1e-5 * np.linalg.norm(truth)
    plain = -sum(plain_logprobs(policy.model, row.prompt_ids, (7,)).item() for row in rows)
    assert whole.loss == pytest.approx(plain, rel=1e-5)


@both_ways
def test_no_micro_batches_no_gradient(make_policy: MakePolicy, checkpointing: bool) -> None:
    policy = make_policy(checkpointing=checkpointing)
    result = batch_gradient(policy, [], HEAD)
    assert (result.loss, result.gradients, result.sums) == (0.0, {}, {})


@both_ways
@pytest.mark.parametrize("share_prompt", [False, True])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_step_leaves_no_trace(
    make_policy: MakePolicy, tuning: str, share_prompt: bool, checkpointing: bool
) -> None:
    policy = make_policy(tuning=tuning, checkpointing=checkpointing)
    block = type(policy.model.layers[0])
    module = sys.modules[block.__module__]
    call, attention, numbers = block.__call__, getattr(module, ATTENTION), flat(policy.weights())
    rows = random_rows(policy, staleness=0.1)
    options = GrpoConfig(micro_batch_tokens=40, share_prompt=share_prompt)
    first = grpo_gradient(policy, rows, options, SamplingConfig())
    assert block.__call__ is call
    assert getattr(module, ATTENTION) is attention
    np.testing.assert_array_equal(flat(policy.weights()), numbers)
    second = grpo_gradient(policy, rows, options, SamplingConfig())
    np.testing.assert_array_equal(flat(first.gradients), flat(second.gradients))  # bit for bit


@both_ways
def test_attention_is_put_back_after_an_error(
    make_policy: MakePolicy, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(checkpointing=checkpointing)
    module = sys.modules[type(policy.model.layers[0]).__module__]
    original = getattr(module, ATTENTION)

    def fail(*arrays: mx.array, **rest: object) -> mx.array:
        assert getattr(module, ATTENTION) is not original
        raise ZeroDivisionError

    monkeypatch.setattr("mlx_sumrl.policy.blocks.causal_attention", fail)
    before = policy.weights()
    with pytest.raises(ZeroDivisionError):
        batch_gradient(policy, micro_batches(), HEAD)
    assert getattr(module, ATTENTION) is original
    assert all(policy.weights()[name] is before[name] for name in before)

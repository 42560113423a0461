"""`batch_gradient` leaves the model as it found it, and recomputing layers is undone, whatever happens."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from mlx_sumrl.config import GrpoConfig, SamplingConfig
from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.training.gradient import Share, batch_gradient
from mlx_sumrl.training.grpo import grpo_gradient

from .models import flat, plain_logprobs, random_rows

MakePolicy = Callable[..., Policy]


def share_of(policy: Policy, fail_at: int | None = None) -> Callable[[int], Share]:
    """Micro-batch i: minus the log-probability of a token after a prompt of i + 1."""

    def share(i: int) -> Share:
        if i == fail_at:
            raise RuntimeError("out of luck")
        value = -plain_logprobs(policy.model, tuple(range(3, 4 + i)), (7,)).sum()
        return value, {"tokens": mx.array(1.0)}

    return share


@pytest.mark.parametrize("fail_at", [0, 1])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_weights_are_untouched_when_a_share_raises(
    make_policy: MakePolicy, tuning: str, fail_at: int
) -> None:
    policy = make_policy(tuning=tuning)
    before = policy.weights()
    numbers = flat(before)
    with pytest.raises(RuntimeError, match="out of luck"):
        batch_gradient(policy, range(3), share_of(policy, fail_at))
    after = policy.weights()
    assert all(after[name] is before[name] for name in before)  # the very arrays, nothing left by tracing
    np.testing.assert_array_equal(flat(after), numbers)
    assert not policy.model.training


def test_weights_are_untouched_when_all_is_well(make_policy: MakePolicy) -> None:
    policy = make_policy()
    before = policy.weights()
    numbers = flat(before)
    result = batch_gradient(policy, range(3), share_of(policy))
    assert result.gradients.keys() == before.keys()
    assert result.sums == {"tokens": 3.0}
    assert all(policy.weights()[name] is before[name] for name in before)
    np.testing.assert_array_equal(flat(policy.weights()), numbers)


def test_shares_add_up(make_policy: MakePolicy) -> None:
    policy = make_policy()
    whole = batch_gradient(policy, range(3), share_of(policy))
    parts = [batch_gradient(policy, [i], share_of(policy)) for i in range(3)]
    assert whole.loss == pytest.approx(sum(part.loss for part in parts), rel=1e-6)
    total = sum(flat(part.gradients) for part in parts)
    np.testing.assert_allclose(flat(whole.gradients), total, rtol=1e-5, atol=1e-7)


def test_no_micro_batches_no_gradient(make_policy: MakePolicy) -> None:
    policy = make_policy()
    result = batch_gradient(policy, [], share_of(policy))
    assert (result.loss, result.gradients, result.sums) == (0.0, {}, {})


@pytest.mark.parametrize("share_prompt", [False, True])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_checkpointed_step_leaves_no_trace(
    make_policy: MakePolicy, tuning: str, share_prompt: bool
) -> None:
    policy = make_policy(tuning=tuning, checkpointing=True)
    block = type(policy.model.layers[0])
    original, numbers = block.__call__, flat(policy.weights())
    rows = random_rows(policy, staleness=0.1)
    options = GrpoConfig(micro_batch_rows=4, share_prompt=share_prompt)
    first = grpo_gradient(policy, rows, options, SamplingConfig())
    assert block.__call__ is original
    np.testing.assert_array_equal(flat(policy.weights()), numbers)
    second = grpo_gradient(policy, rows, options, SamplingConfig())
    np.testing.assert_array_equal(flat(first.gradients), flat(second.gradients))  # bit for bit


def test_checkpointing_is_undone_after_an_error(make_policy: MakePolicy) -> None:
    model = make_policy().model
    block = type(model.layers[0])
    original = block.__call__

    def fail() -> None:
        assert block.__call__ is not original
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), mlx_internals.checkpointed_layers(model, True):
        fail()
    assert block.__call__ is original


def test_checkpointing_twice_is_refused(make_policy: MakePolicy) -> None:
    model = make_policy().model
    block = type(model.layers[0])
    original = block.__call__
    with mlx_internals.checkpointed_layers(model, True):
        once = block.__call__
        with (
            pytest.raises(RuntimeError, match="checkpointed already"),
            mlx_internals.checkpointed_layers(model, True),
        ):
            pass
        assert block.__call__ is once  # the refusal did not take the first one's off
    assert block.__call__ is original


def test_checkpointing_that_is_off_changes_nothing(make_policy: MakePolicy) -> None:
    model = make_policy().model
    block = type(model.layers[0])
    original = block.__call__
    with mlx_internals.checkpointed_layers(model, False):
        assert block.__call__ is original

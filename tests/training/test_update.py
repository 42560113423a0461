"""A step that is not finite is skipped and leaves no trace; too many in a row stop the run."""

from __future__ import annotations

import math
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_sumrl.config import OptimizerConfig, PolicyConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.training.micro_batch import BatchGradient
from mlx_sumrl.training.optimizer import Optimizer
from mlx_sumrl.training.update import Guard, apply_update

from .models import flat


def make_policy() -> Policy:
    """One linear layer: two weights arrays."""
    mx.random.seed(0)
    options = PolicyConfig(model="tiny", tuning="full")
    return Policy(nn.Linear(3, 2), None, {}, Path("tiny"), options, frozenset({0}), 0)


def gradient(loss: float = 1.0, weight: float = 0.5, bias: float = 0.25) -> BatchGradient:
    return BatchGradient(loss, {"weight": mx.full((2, 3), weight), "bias": mx.full((2,), bias)}, {})


BAD = [
    gradient(loss=math.nan),
    gradient(loss=math.inf),
    gradient(weight=math.nan),
    gradient(bias=-math.inf),
    gradient(weight=1e25),  # finite, its square is not
]
BAD_NAMES = ["loss nan", "loss inf", "gradient nan", "gradient inf", "norm overflows"]


@pytest.mark.parametrize("bad", BAD, ids=BAD_NAMES)
def test_a_bad_step_changes_nothing(bad: BatchGradient) -> None:
    policy, optimizer, guard = make_policy(), Optimizer(OptimizerConfig(), seed=0), Guard(limit=5)
    apply_update(policy, optimizer, guard, gradient(), 0.1)
    weights, state, count = flat(policy.weights()), flat(optimizer.state()), optimizer.count

    metrics = apply_update(policy, optimizer, guard, bad, 0.1)
    np.testing.assert_array_equal(flat(policy.weights()), weights)
    np.testing.assert_array_equal(flat(optimizer.state()), state)
    assert optimizer.count == count == 1
    assert (guard.in_a_row, guard.total, metrics["updates/skipped"]) == (1, 1, 1.0)


def test_a_run_with_skipped_steps_is_the_run_without_them() -> None:
    ends = []
    for bad in ([], BAD[:3]):
        policy, optimizer, guard = make_policy(), Optimizer(OptimizerConfig(), seed=0), Guard(limit=5)
        for step in (gradient(), *bad, gradient(weight=-1.0), gradient(bias=2.0)):
            apply_update(policy, optimizer, guard, step, 0.1)
        ends.append(flat(policy.weights()))
    np.testing.assert_array_equal(*ends)


def test_too_many_in_a_row_stop_the_run() -> None:
    policy, optimizer, guard = make_policy(), Optimizer(OptimizerConfig(), seed=0), Guard(limit=3)
    weights = flat(policy.weights())
    for _ in range(2):
        apply_update(policy, optimizer, guard, BAD[0], 0.1)
    with pytest.raises(UserError, match=r"3 steps in a row.*max_bad_steps"):
        apply_update(policy, optimizer, guard, BAD[2], 0.1)
    np.testing.assert_array_equal(flat(policy.weights()), weights)
    assert optimizer.count == 0


def test_a_good_step_starts_the_count_again() -> None:
    policy, optimizer, guard = make_policy(), Optimizer(OptimizerConfig(), seed=0), Guard(limit=3)
    for _ in range(4):
        for _ in range(2):
            apply_update(policy, optimizer, guard, BAD[0], 0.1)
        metrics = apply_update(policy, optimizer, guard, gradient(), 0.1)
        assert guard.in_a_row == 0
    assert guard.total == 8
    assert metrics["updates/skipped"] == 8.0


def test_an_empty_gradient_is_no_step_and_not_a_bad_one() -> None:
    policy, optimizer, guard = make_policy(), Optimizer(OptimizerConfig(), seed=0), Guard(limit=1)
    weights = flat(policy.weights())
    metrics = apply_update(policy, optimizer, guard, BatchGradient(0.0, {}, {}), 0.1)
    np.testing.assert_array_equal(flat(policy.weights()), weights)
    assert (optimizer.count, guard.total, metrics["grad_norm"]) == (0, 0, 0.0)


def test_a_good_step_by_hand() -> None:
    # Norm: 6 x 0.5² + 2 x 0.25² = 1.625. The first step of AdamW is one rate against the sign, clipped or not.
    policy, optimizer = make_policy(), Optimizer(OptimizerConfig(max_grad_norm=1.0), seed=0)
    before = flat(policy.weights())
    metrics = apply_update(policy, optimizer, Guard(limit=1), gradient(loss=2.5), 0.125)
    assert metrics["grad_norm"] == pytest.approx(math.sqrt(1.625))
    assert (metrics["loss"], metrics["learning_rate"], metrics["updates/skipped"]) == (2.5, 0.125, 0.0)
    assert metrics["update/kept_fraction"] == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(flat(policy.weights()), before - 0.125, atol=1e-5)
    # The moments saw the clipped gradient: a tenth of 0.5 / 1.2748.
    np.testing.assert_allclose(
        np.array(optimizer.state()["first.weight"]), 0.05 / math.sqrt(1.625), rtol=1e-5
    )

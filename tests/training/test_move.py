"""`Optimizer.move` in a policy: the same numbers as `step`, no second copy, and no weight lost to an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_sumrl.config import OptimizerConfig, PolicyConfig
from mlx_sumrl.policy.policy import Policy, Weights
from mlx_sumrl.training import moments, optimizer
from mlx_sumrl.training.optimizer import Optimizer

from .models import moved

MakePolicy = Callable[..., Policy]
OPTIONS = [
    {"kind": "adamw"},
    {"kind": "adamw", "rounding": "stochastic"},
    {"kind": "adamw", "rounding": "compensated", "moments": "bfloat16"},
    {"kind": "adamw", "moments": "blocks8"},
    {"kind": "lion"},
    {"kind": "adafactor"},
    {"kind": "muon", "rounding": "stochastic"},
]


def noise(weights: Weights, seed: int) -> Weights:
    zeros = {name: mx.zeros(array.shape, dtype=array.dtype) for name, array in weights.items()}
    return moved(zeros, 1.0, seed)


def bits(arrays: Weights) -> dict[str, bytes]:
    return {
        name: np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array).tobytes()
        for name, array in arrays.items()
    }


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options.values()))
def test_the_weights_are_those_of_steps(
    options: dict[str, Any], dtype: mx.Dtype, make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, over several steps, in slices smaller than the embedding."""
    monkeypatch.setattr(moments, "SLICE", 512)
    policy = make_policy(dtype=dtype)
    weights, shapes = policy.snapshot(), {n: a.shape for n, a in policy.weights().items()}
    before = bits(weights)
    one, other = (Optimizer(OptimizerConfig(**options), seed=3) for _ in range(2))
    for step in range(3):
        gradients = noise(weights, step)
        used = dict(gradients)
        report = one.move(policy, used, 0.01)
        weights, expected = other.step(weights, gradients, 0.01)
        assert used == {}
        assert len(gradients) == len(shapes)  # `step` leaves them alone
        assert report == expected
        assert bits(policy.weights()) == bits(weights)
        assert bits(one.state()) == bits(other.state())
    assert {name: array.shape for name, array in policy.weights().items()} == shapes
    assert all(now != before[name] for name, now in bits(policy.weights()).items())


def policy_of(model: nn.Module) -> Policy:
    options = PolicyConfig(model="tiny", tuning="full")
    return Policy(model, None, {}, Path("tiny"), options, frozenset({0}), 0)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("kind", ["adamw", "lion"])
def test_no_second_copy_of_a_large_weight(
    kind: str, dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 million numbers, 64 slices: above weights, state and gradients live the temporaries of one slice."""
    monkeypatch.setattr(moments, "SLICE", 1 << 16)
    model = nn.Linear(2048, 2048, bias=False)
    model.weight = model.weight.astype(dtype)
    policy, held = policy_of(model), Optimizer(OptimizerConfig(kind=kind, moments="float32"), seed=0)
    size = model.weight.nbytes
    for step in range(3):
        gradients = noise(policy.weights(), step)
        mx.eval(model.parameters(), gradients)
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        held.move(policy, gradients, 0.01)
        more = mx.get_peak_memory() - before
        if step:  # the first makes the state
            assert more < 20 * 4 * (1 << 16) < size
        del gradients


def test_an_error_on_the_way_leaves_every_weight_in_its_place(
    make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy()
    start, shapes = policy.snapshot(), {n: a.shape for n, a in policy.weights().items()}
    written, calls = optimizer.written, 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("out of luck")
        return written(*arguments)

    monkeypatch.setattr(optimizer, "written", failing)
    gradients = noise(start, 0)
    names = list(gradients)
    with pytest.raises(RuntimeError, match="out of luck"):
        Optimizer(OptimizerConfig(), seed=0).move(policy, gradients, 0.01)
    after = policy.weights()
    assert {name: array.shape for name, array in after.items()} == shapes
    changed = [name for name in names if not mx.array_equal(after[name], start[name])]
    assert changed == names[:2]  # each weight is one slice here
    assert np.isfinite(np.array(policy.model(mx.array([[3, 4, 5]])))).all()


def test_a_weight_that_is_taken_is_handed_back() -> None:
    policy = policy_of(nn.Linear(3, 2))
    own = policy.model.weight
    taken = policy.take_weight("weight")
    assert taken is own
    assert policy.model.weight.size == 0
    policy.set_weight("weight", taken)
    assert policy.weights()["weight"] is own

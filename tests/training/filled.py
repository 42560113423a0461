"""Checkpoints in which every number is the step they are of: a mixture of two would show."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_sumrl.config import OptimizerConfig, PolicyConfig
from mlx_sumrl.policy.policy import Policy, Weights
from mlx_sumrl.training.checkpoints import load_checkpoint
from mlx_sumrl.training.optimizer import Optimizer


def small_policy(size: int = 8) -> Policy:
    """A policy that is nothing but two weights."""
    model = nn.Sequential(nn.Linear(size, size))
    return Policy(
        model=model,
        tokenizer=None,
        config={},
        folder=Path(),
        options=PolicyConfig(model="none", tuning="full", dtype="float32"),
        stop_ids=frozenset({2}),
        stop_id=2,
    )


def filled(value: float, size: int = 8) -> tuple[Policy, Optimizer]:
    """A policy and moments whose every number is ``value``: a mixture of two checkpoints would show."""
    policy, optimizer = small_policy(size), Optimizer(OptimizerConfig(), seed=0)
    weights = {name: mx.full(array.shape, value) for name, array in policy.weights().items()}
    policy.set_weights(weights)
    optimizer.restore(moments(weights), int(value))
    return policy, optimizer


def moments(weights: Weights) -> Weights:
    """The weights' values as AdamW's state."""
    return {f"{which}.{name}": array for which in ("first", "second") for name, array in weights.items()}


def check_filled(checkpoint: Path, size: int = 8) -> int:
    """The step of a checkpoint made with `filled`, after a look at every number in it."""
    policy, optimizer = filled(-1.0, size)
    state = load_checkpoint(checkpoint, policy, optimizer)
    assert checkpoint.name == f"step-{state.step:06d}"
    assert optimizer.count == state.step
    assert optimizer.state().keys() == moments(policy.weights()).keys()
    for weights in (policy.weights(), optimizer.state()):
        for array in weights.values():
            assert (np.array(array) == state.step).all()
    return state.step

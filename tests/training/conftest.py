"""A tiny Qwen2 in float32, made on the spot, as a policy to train."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import mlx_sumrl  # noqa: F401  (before mlx: it loads a fast BLAS)
from mlx_sumrl.policy.policy import Policy

from .models import tiny_policy


@pytest.fixture
def make_policy() -> Callable[..., Policy]:
    """``make_policy(tuning="lora", checkpointing=True, vocabulary=48, ...)``; see `tiny_policy`."""
    return tiny_policy

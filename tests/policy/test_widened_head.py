"""The head whose weights are widened once, against the one that widens them at each call."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_sumrl.config import PolicyConfig
from mlx_sumrl.policy import mlx_internals
from mlx_sumrl.policy.loading import load_policy
from tests.families import D, write_model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen2", "qwen2-untied", "phi3", "lfm2"])
def test_widened_head_is_the_head(family: str, dtype: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / family, family)
    model = load_policy(PolicyConfig(model=str(folder), tuning="full", dtype=dtype)).model
    widened = mlx_internals.widened_head(model)
    for rows in (1, 7):
        hidden = mx.random.normal((rows, D), key=mx.random.key(rows)).astype(getattr(mx, dtype))
        logits = widened(hidden)
        assert logits.dtype == mx.float32
        np.testing.assert_array_equal(logits, mlx_internals.head(model, hidden))


def test_a_quantised_head_stays_quantised(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "untied", "llama-untied")
    model = load_policy(PolicyConfig(model=str(folder), tuning="full", dtype="bfloat16")).model
    nn.quantize(model, group_size=32, bits=8, class_predicate=lambda path, module: path == "lm_head")
    hidden = mx.random.normal((3, D), key=mx.random.key(0))
    before = mx.get_active_memory()
    widened = mlx_internals.widened_head(model)
    np.testing.assert_array_equal(widened(hidden), mlx_internals.head(model, hidden))
    assert mx.get_active_memory() - before < model.lm_head.weight.size  # no wide copy of it

"""The whole loop on a random policy: it learns the length that it is paid for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mlx_sumrl.config import RunConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.training.trainer import Trainer

from .models import STOP, tiny_policy


class Letters:
    """Stands for a tokenizer where only the number of tokens counts."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "x" * len(ids)


def learn_a_length(weight: float, steps: int) -> list[float]:
    """Share of completions within 8 ± 2, step by step, of a random policy paid ``weight`` times for the length."""
    policy = tiny_policy(vocabulary=24, tokenizer=Letters())
    stages = [{"name": "length", "steps": steps, "rewards": [{"kind": "length", "weight": weight}]}]
    config = RunConfig.model_validate(
        {
            "policy": policy.options,
            "length": {"target": 8, "tolerance": 2},
            "sampling": {"max_tokens": 20},
            "grpo": {"prompts_per_step": 4, "group_size": 16},
            "optimizer": {"learning_rate": 5e-3},
            "stages": stages,
        }
    )
    within: list[float] = []

    class Watching(Trainer):
        def _log(self, name: str, metrics: Any, seconds: float) -> None:
            within.append(float(metrics["length/within"]))

    prompts = [tuple(3 + (row + place) % 20 for place in range(4)) for row in range(8)]
    examples = [Example(f"row {n}", ids, "prompt", "document", "reference") for n, ids in enumerate(prompts)]
    assert all(STOP not in ids for ids in prompts)
    Watching(policy, config).stage(config.stages[0], examples)
    return within


@pytest.mark.slow
def test_it_learns_the_length_it_is_paid_for() -> None:
    within = learn_a_length(weight=1.0, steps=40)
    # A coin with 1/24 for the stop token: within 6 to 10 tokens in about (23/24)^6 x 5/24 = 16 % of all cases.
    assert np.mean(within[:3]) < 0.3
    assert np.mean(within[-5:]) > 0.6


@pytest.mark.slow
def test_it_unlearns_the_length_it_has_to_pay_for() -> None:
    """The same with the sign turned round: what would happen if advantages had the wrong one."""
    assert np.mean(learn_a_length(weight=-1.0, steps=20)[-5:]) < 0.1

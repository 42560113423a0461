"""The range test on curves whose answer is known, and on a model that it has to leave as it was."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_sumrl.config import RateRangeConfig, SftOptimizerConfig, SupervisedConfig
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.training.rate_range import blown_up, judged, rate_range

from .test_learned_tokens import make_rows

MakePolicy = Callable[..., Policy]
RATES = np.geomspace(1e-6, 1.0, 121)
"""Twenty steps to each power of ten."""


def curve(falls_at: float, rises_at: float, depth: float = 2.0) -> list[float]:
    """5 nats that fall by ``depth`` around one rate, as a sigmoid of its logarithm, and rise past another."""
    x = np.log10(RATES)
    fall = depth / (1 + np.exp(-4 * (x - math.log10(falls_at))))
    rise = 10 ** (3 * (x - math.log10(rises_at)))
    return (5 - fall + depth * rise).tolist()


@pytest.mark.parametrize("falls_at", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_a_curve_whose_fall_and_rise_are_known(falls_at: float, noise: float) -> None:
    losses = np.array(curve(falls_at, 0.5)) + np.random.default_rng(0).normal(size=len(RATES)) * noise
    found = judged(RATES.tolist(), losses.tolist(), len(RATES))
    assert found.steepest == pytest.approx(falls_at, rel=1.0 if noise else 0.15)
    # Half of what was won is lost where the rise, of the third power of the rate, is half of what it is at 0.5.
    assert found.diverged == pytest.approx(0.5 * 0.5 ** (1 / 3), rel=0.3)
    assert found.suggestion == min(found.steepest, found.diverged / 10)


def test_a_fall_close_to_the_rise_is_not_trusted() -> None:
    found = judged(RATES.tolist(), curve(0.1, 0.2), len(RATES))
    assert found.steepest is not None
    assert found.diverged is not None
    assert found.suggestion == found.diverged / 10 < found.steepest


def test_no_fall_no_suggestion() -> None:
    found = judged(RATES.tolist(), [5.0] * len(RATES), len(RATES))
    assert (found.steepest, found.diverged, found.suggestion) == (None, None, None)
    rising = judged(RATES.tolist(), np.linspace(5, 9, len(RATES)).tolist(), len(RATES))
    assert rising.suggestion is None
    assert rising.diverged is not None


def test_never_diverged() -> None:
    found = judged(RATES.tolist(), curve(1e-3, 1e9), len(RATES))
    assert found.diverged is None
    assert found.suggestion == found.steepest == pytest.approx(1e-3, rel=0.15)


@pytest.mark.parametrize("end", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_the_end(end: float) -> None:
    losses = [*curve(1e-3, 1e9)[:100], end]
    found = judged(RATES[:101].tolist(), losses, len(RATES))
    assert found.diverged == RATES[100]
    assert found.suggestion == found.steepest == pytest.approx(1e-3, rel=0.15)
    assert judged(RATES[:1].tolist(), [end], len(RATES)).suggestion is None


@given(st.lists(st.floats(0.1, 20) | st.just(math.nan), min_size=1, max_size=121))
def test_any_losses(losses: list[float]) -> None:
    ends = next((i for i, loss in enumerate(losses) if math.isnan(loss)), len(losses) - 1)
    losses = losses[: ends + 1]
    found = judged(RATES[: len(losses)].tolist(), losses, len(RATES))
    finite = [loss for loss in losses if math.isfinite(loss)]
    assert all(min(finite) - 1e-9 <= value <= max(finite) + 1e-9 for value in found.smoothed)
    if found.suggestion is not None:
        assert RATES[0] / 10 <= found.suggestion <= RATES[-1]
        assert found.diverged is None or found.suggestion <= found.diverged / 10 * (1 + 1e-12)


def test_blown_up_takes_several_losses_in_a_row() -> None:
    assert not blown_up([5.0] * 9)
    assert not blown_up([5.0] * 9 + [9.0, 9.0])
    assert blown_up([5.0] * 9 + [9.0, 9.0, 8.0])
    assert not blown_up([5.0] * 9 + [9.0, 7.0, 9.0])


@pytest.mark.parametrize(
    ("tuning", "dtype"), [("full", mx.float32), ("full", mx.bfloat16), ("lora", mx.float32)]
)
def test_it_leaves_no_trace(make_policy: MakePolicy, tuning: str, dtype: mx.Dtype) -> None:
    policy = make_policy(tuning=tuning, dtype=dtype)
    before = policy.snapshot()
    told: list[int] = []
    test = rate_range(
        policy,
        make_rows(),
        RateRangeConfig(lowest=1e-5, highest=30.0, steps=40),
        SupervisedConfig(batch_size=6),
        SftOptimizerConfig(),
        progress=lambda step, rate, loss: told.append(step),
    )
    after = policy.weights()
    assert all(mx.array_equal(before[name], after[name]) for name in before)
    assert told == [*range(1, len(test.losses) + 1)]
    # It did train in between, first with success and then without.
    assert min(test.smoothed) < test.losses[0] - 0.1
    assert test.diverged is not None
    assert test.suggestion is not None
    assert 1e-5 < test.suggestion < 1


def test_it_leaves_no_trace_where_it_fails(make_policy: MakePolicy) -> None:
    policy = make_policy()
    before = policy.snapshot()

    def stop(step: int, rate: float, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rate_range(
            policy,
            make_rows(),
            RateRangeConfig(lowest=0.01),
            SupervisedConfig(),
            SftOptimizerConfig(),
            progress=stop,
        )
    after = policy.weights()
    assert all(mx.array_equal(before[name], after[name]) for name in before)


def test_a_narrow_range_is_refused() -> None:
    with pytest.raises(ValueError, match="too narrow"):
        RateRangeConfig(lowest=0.1, highest=0.5)

"""How an update reaches bfloat16 weights: stochastic rounding is unbiased, and what is lost is measured.

bfloat16 keeps 8 significant bits: between 2^-6 and 2^-5, where 0.02 lies, its numbers are 2^-13 = 1.2e-4 apart.
"""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_sumrl.config import OptimizerConfig
from mlx_sumrl.training import moments
from mlx_sumrl.training.optimizer import Optimizer
from mlx_sumrl.training.rounding import rounded, written

N = 1 << 17
LOW = 2.0**-6 + 37 * 2.0**-13  # a bfloat16 number near 0.02
GAP = 2.0**-13


def draw(value: float, seed: int = 0) -> np.ndarray:
    """``value`` rounded N times."""
    values = mx.full((N,), value, dtype=mx.float32)
    result = rounded(values, mx.bfloat16, "stochastic", mx.random.key(seed))
    assert result.dtype == mx.bfloat16
    return np.array(result.astype(mx.float32), np.float64)


@pytest.mark.parametrize("share", [2**-10, 1 / 64, 0.3, 0.5, 0.97])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_mean_is_exact_and_only_neighbours_are_drawn(share: float, sign: int) -> None:
    value = float(np.float32(sign * (LOW + share * GAP)))
    share = (abs(value) - LOW) / GAP
    drawn = draw(value)
    assert set(np.unique(drawn)) == {sign * LOW, sign * (LOW + GAP)}
    away = float((drawn == sign * (LOW + GAP)).mean())
    # N independent draws: five standard deviations, exceeded by chance once in two million.
    assert abs(away - share) < 5 * math.sqrt(share * (1 - share) / N)


def test_neighbours_across_a_power_of_two() -> None:
    # Below 2^-6 the gap is half as wide.
    value = 2.0**-6 - 0.25 * GAP / 2
    drawn = draw(value)
    assert set(np.unique(drawn)) == {2.0**-6, 2.0**-6 - GAP / 2}
    assert abs(drawn.mean() - value) < 5 * (GAP / 2) * math.sqrt(0.25 * 0.75 / N)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -LOW, 2.0**-126, 3.3895313892515355e38])
def test_numbers_that_bfloat16_has_are_kept(value: float) -> None:
    drawn = draw(value)
    assert (drawn == value).all()
    assert (np.signbit(drawn) == np.signbit(value)).all()


def test_infinity_and_nan_are_kept() -> None:
    values = mx.array([math.inf, -math.inf, math.nan, 1.0] * 100)
    for seed in range(20):
        result = rounded(values, mx.bfloat16, "stochastic", mx.random.key(seed)).astype(mx.float32)
        found = np.array(result).reshape(-1, 4)
        assert (found[:, 0] == math.inf).all()
        assert (found[:, 1] == -math.inf).all()
        assert np.isnan(found[:, 2]).all()
        assert (found[:, 3] == 1).all()


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, 0xFF80FFFF, 0xFFFFFFFF])
def test_no_nan_is_rounded_to_a_number(bits: int) -> None:
    # Cut off, the first would be infinity; with noise added, the second would carry over into -0.
    values = mx.full((1000,), bits, dtype=mx.uint32).view(mx.float32)
    result = rounded(values, mx.bfloat16, "stochastic", mx.random.key(0))
    assert np.isnan(np.array(result.astype(mx.float32))).all()


def test_one_key_one_rounding() -> None:
    value = LOW + 0.4 * GAP
    np.testing.assert_array_equal(draw(value, seed=3), draw(value, seed=3))
    # Two independent draws of probability 0.4 agree on 0.4² + 0.6² = 52 % of the elements.
    agreement = float((draw(value, seed=3) == draw(value, seed=4)).mean())
    assert agreement == pytest.approx(0.52, abs=5 * math.sqrt(0.25 / N))


def test_float32_weights_are_not_rounded() -> None:
    values = mx.random.normal((100,), key=mx.random.key(0))
    assert mx.array_equal(rounded(values, mx.float32, "stochastic", mx.random.key(1)), values)


def one_step(weights: mx.array, rounding: str, rate: float = 2e-6, seed: int = 0) -> tuple[mx.array, float]:
    """The first step of AdamW is ``rate`` against the gradient's sign; here it goes up everywhere."""
    optimizer = Optimizer(OptimizerConfig(rounding=rounding), seed)
    updated, report = optimizer.step({"w": weights}, {"w": -mx.ones(weights.shape)}, rate)
    return updated["w"], report.kept_fraction


def test_nearest_loses_a_small_step_on_usual_weights() -> None:
    """2e-6 is a sixtieth of the gap at 0.02, so nothing is kept; at 2^-12 the gap is 2^-19 = 1.9e-6.

    There one gap is taken: kept are 1.9073e-6 of 2e-6, 95 % of half of the weights.
    """
    weights = mx.array([LOW, 2.0**-12] * 500, dtype=mx.float32).astype(mx.bfloat16)
    updated, kept = one_step(weights, "nearest")
    found = np.array(updated.astype(mx.float32), np.float64).reshape(-1, 2)
    assert (found[:, 0] == LOW).all()
    assert (found[:, 1] == 2.0**-12 + 2.0**-19).all()
    assert kept == pytest.approx(0.5 * 2.0**-19 / 2e-6, rel=1e-4)


def test_nearest_keeps_little_of_a_step_on_normal_weights() -> None:
    # Only weights below 2^-10 = 9.8e-4 have gaps small enough for half of one to be under 2e-6: 3.9 % of N(0, 0.02²).
    rng = np.random.default_rng(0)
    weights = mx.array(rng.normal(scale=0.02, size=20_000)).astype(mx.bfloat16)
    updated, kept = one_step(weights, "nearest")
    changed = np.array((updated != weights).astype(mx.float32)).mean()
    assert changed == pytest.approx(math.erf(2.0**-10 / 0.02 / math.sqrt(2)), abs=0.006)
    assert kept < 0.08


def test_stochastic_rounding_keeps_the_step_on_average() -> None:
    # Each weight moves a whole gap with probability f = 2e-6 / 2^-13 = 1/61: the mean of N such has a relative
    # deviation of root((1 - f) / f / N) = 2.1 %.
    f = 2e-6 / GAP
    _, kept = one_step(mx.full((N,), LOW, dtype=mx.bfloat16), "stochastic")
    assert kept == pytest.approx(1, abs=5 * math.sqrt((1 - f) / f / N))


def test_float32_keeps_it_all() -> None:
    # Weights of 0.02 have gaps of 1.9e-9 in float32, a thousandth of the step.
    for rounding in ("stochastic", "nearest"):
        _, kept = one_step(mx.full((1000,), 0.02), rounding)
        assert kept == pytest.approx(1, abs=1e-3)


def test_many_small_steps_arrive() -> None:
    steps, rate, size = 100, 2e-6, 1 << 14

    def way(rounding: str) -> float:
        optimizer = Optimizer(OptimizerConfig(rounding=rounding), seed=0)
        weights = {"w": mx.full((size,), LOW, dtype=mx.bfloat16)}
        for _ in range(steps):
            weights, _ = optimizer.step(weights, {"w": -mx.ones((size,))}, rate)
        return float(weights["w"].astype(mx.float32).mean().item()) - LOW

    f = (
        rate / GAP
    )  # each step moves a weight by a gap with this probability, independently of the steps before
    deviation = GAP * math.sqrt(f * (1 - f) * steps / size)
    assert abs(way("stochastic") - steps * rate) < 5 * deviation
    assert 5 * deviation < 0.1 * steps * rate  # a bound that means something
    assert way("nearest") == 0


def test_each_weight_and_each_step_has_its_own_randomness() -> None:
    optimizer = Optimizer(OptimizerConfig(), seed=0)
    weights = {name: mx.full((N // 8,), LOW, dtype=mx.bfloat16) for name in ("a", "b")}
    gradients = {name: -mx.ones((N // 8,)) for name in weights}
    moves = []
    for _ in range(2):  # from the same weights: only the randomness differs
        updated, _ = optimizer.step(weights, gradients, 0.4 * GAP)
        moves += [np.array((updated[name] != weights[name]).astype(mx.float32)) for name in weights]
    for i, j in [(0, 1), (0, 2), (2, 3)]:
        assert abs(np.corrcoef(moves[i], moves[j])[0, 1]) < 5 / math.sqrt(N // 8)


def test_each_slice_has_its_own_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    size = N // 8
    monkeypatch.setattr(moments, "SLICE", size)
    weights = mx.full((2, size), LOW, dtype=mx.bfloat16)
    moves = np.array((one_step(weights, "stochastic", rate=0.4 * GAP)[0] != weights).astype(mx.float32))
    assert np.abs(moves.mean(axis=1) - 0.4).max() < 5 * math.sqrt(0.24 / size)
    assert abs(np.corrcoef(moves[0], moves[1])[0, 1]) < 5 / math.sqrt(size)


def test_one_seed_one_run() -> None:
    start = mx.full((1000,), LOW, dtype=mx.bfloat16)
    same = [one_step(start, "stochastic", rate=0.3 * GAP, seed=seed)[0] for seed in (1, 1, 2)]
    assert mx.array_equal(same[0], same[1])
    assert not mx.array_equal(same[0], same[2])


def compensated_way(updates: np.ndarray, rounding: str = "compensated") -> tuple[np.ndarray, np.ndarray]:
    """How far weights near 0.02 moved by updates [steps, n], with and without what the compensation holds."""
    weight = mx.full(updates.shape[1:], LOW, dtype=mx.bfloat16)
    held = mx.zeros(updates.shape[1:], dtype=mx.bfloat16)
    for step, update in enumerate(updates):
        done = written(weight, held, mx.array(update, dtype=mx.float32), rounding, mx.random.key(step))
        assert done.compensation is not None
        before = np.array(weight.astype(mx.float32), np.float64) + np.array(
            held.astype(mx.float32), np.float64
        )
        weight, held = done.weight, done.compensation
        way = np.array(weight.astype(mx.float32), np.float64) - LOW
        both = way + np.array(held.astype(mx.float32), np.float64)
        np.testing.assert_allclose(np.array(done.change), both + LOW - before, atol=1e-12)
    return way, both


def test_a_compensation_keeps_what_the_weight_cannot_take() -> None:
    """Updates of a sixtieth of a gap, by sums in float64.

    The compensation is at most half of the gap, where its own numbers are GAP / 512 = 2.4e-7 apart: each step's
    draw is off by at most that, by 0.4 of it on average.
    """
    rng = np.random.default_rng(0)
    updates = rng.normal(loc=1e-6, scale=1e-6, size=(200, 2000))
    way, both = compensated_way(updates)
    truth = updates.sum(axis=0)
    off = 0.5 * GAP / 512 * math.sqrt(200)  # 1.7e-6, on a way of 2e-4
    assert np.sqrt(np.mean((both - truth) ** 2)) < off
    assert abs((both - truth).mean()) < 5 * off / math.sqrt(2000)
    assert np.abs(way - both).max() <= 0.5 * GAP


def test_kept_counts_what_a_compensation_holds() -> None:
    # No weight moves, nothing is lost: 2e-6 has 8 bits of its own in the compensation, 0.2 % off by a draw.
    weights = mx.full((1000,), LOW, dtype=mx.bfloat16)
    updated, kept = one_step(weights, "compensated")
    assert mx.array_equal(updated, weights)
    assert kept == pytest.approx(1, abs=1e-3)


def test_float32_weights_have_no_compensation() -> None:
    optimizer = Optimizer(OptimizerConfig(rounding="compensated"), seed=0)
    optimizer.step({"w": mx.ones((3,))}, {"w": mx.ones((3,))}, 0.1)
    assert set(optimizer.state()) == {"first.w", "second.w"}

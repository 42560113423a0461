"""Moments in 16 and 8 bits: codes right on average, decay, and no step out of proportion."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_sumrl.config import OptimizerConfig
from mlx_sumrl.training import moments as moments_module
from mlx_sumrl.training.blocks8 import BLOCK, block_count, decode, encode
from mlx_sumrl.training.moments import Moment, Part, flat_slices
from mlx_sumrl.training.optimizer import Optimizer

STORAGES = ["float32", "bfloat16", "blocks8"]
DRAWS = 4000


def coded(values: np.ndarray, signed: bool, seed: int = 0) -> np.ndarray:
    """What comes back of values, as float64."""
    codes, scales = encode(mx.array(values, dtype=mx.float32), signed, mx.random.key(seed))
    assert (codes.dtype, codes.shape) == (mx.uint8, values.shape)
    assert (scales.dtype, scales.shape) == (mx.float32, (block_count(values.size),))
    return np.array(decode(codes, scales, signed), np.float64)


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_right_on_average(signed: bool) -> None:
    """Each value in 4,000 blocks of its own, drawn independently."""
    octaves = 15 if signed else 31
    rng = np.random.default_rng(0)
    block = np.exp2(-rng.uniform(0, octaves, size=BLOCK))
    block[0] = 1
    if signed:
        block *= rng.choice([-1, 1], size=BLOCK)
    block = block.astype(np.float32).astype(np.float64)
    drawn = coded(np.tile(block, DRAWS), signed).reshape(DRAWS, BLOCK)
    # Two neighbours are 9.05 % apart: no draw is further off than that, and the mean's deviation is at most
    # half of it over the root of the number of draws.
    step = 2 ** (1 / 8) - 1
    assert (np.abs(drawn - block) <= (step + 1e-5) * np.abs(block)).all()
    deviation = 0.5 * step / math.sqrt(DRAWS)
    assert (np.abs(drawn.mean(axis=0) - block) < 5 * deviation * np.abs(block)).all()
    assert (np.abs(drawn.mean(axis=0) - block) > 0).any()


def test_small_signed_numbers_are_right_on_average_too() -> None:
    # The smallest code of a block with maximum 1 is 2^-15.75; a tenth of it is drawn one time in ten.
    smallest = 2.0**-15.75
    block = np.full(BLOCK, -0.1 * smallest)
    block[0] = 1
    drawn = coded(np.tile(block, DRAWS), signed=True).reshape(DRAWS, BLOCK)[:, 1:]
    np.testing.assert_allclose(np.unique(drawn), [-smallest, 0], rtol=1e-6)
    deviation = smallest * math.sqrt(0.1 * 0.9 / drawn.size)
    assert abs(drawn.mean() + 0.1 * smallest) < 5 * deviation


def test_a_second_moment_is_never_lost() -> None:
    block = np.full(BLOCK, 1e-24)
    block[0], block[1] = 1, 0
    drawn = coded(block, signed=False)
    assert drawn[0] == 1
    assert drawn[1] == 0
    np.testing.assert_allclose(drawn[2:], 2.0**-31.75, rtol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_zero_and_the_largest_are_exact(signed: bool) -> None:
    rng = np.random.default_rng(0)
    values = np.abs(rng.normal(size=5 * BLOCK + 7)).astype(np.float32)
    if signed:
        values[::3] *= -1
    values[1::5] = 0
    found = coded(values, signed)
    assert (found[1::5] == 0).all()
    assert (np.sign(found) == np.sign(values)).all()
    for start in range(0, values.size, BLOCK):
        largest = start + np.abs(values[start : start + BLOCK]).argmax()
        assert found[largest] == values[largest]
    assert (coded(np.zeros(300), signed) == 0).all()


def part(size: int, flat: slice) -> Part:
    return Part("w", (size,), flat, 0, 1, 0.0)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("signed", [True, False])
def test_slices_do_not_touch_each_other(storage: str, signed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments_module, "SLICE", 2 * BLOCK)
    size, state = 5 * BLOCK + 7, {}
    moment = Moment("m", storage, signed=signed)
    values = mx.random.uniform(shape=(size,), key=mx.random.key(0))
    slices = flat_slices(size)
    assert [(flat.start, flat.stop) for flat in slices] == [(0, 256), (256, 512), (512, 647)]
    for flat in slices:
        assert mx.array_equal(moment.read(state, part(size, flat)), mx.zeros((flat.stop - flat.start,)))
        moment.write(state, part(size, flat), values[flat], mx.random.key(1))
    assert {name: array.dtype for name, array in state.items()} == {
        f"{name}.w": dtype for name, dtype in moment.layout.items()
    }
    assert all(array.ndim == 1 for array in state.values())
    tolerance = {"float32": 0, "bfloat16": 2**-7, "blocks8": 0.0906}[storage]
    for flat in slices:
        found = np.array(moment.read(state, part(size, flat)), np.float64)
        np.testing.assert_allclose(found, np.array(values[flat]), rtol=tolerance)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("beta", [0.99, 0.999])
def test_second_moments_decay(storage: str, beta: float) -> None:
    """One gradient, then none: as beta^n, though the factor is a small part of what the storage resolves.

    In 8 bits each write is off by at most 4.53 % (standard deviation, in the middle between two codes), so after n
    writes the mean of N numbers is off by about root(n / N) times that.
    """
    steps, size = 60, 1 << 14
    moment, state = Moment("second", storage, signed=False), {}
    rng = np.random.default_rng(0)
    start = np.exp2(-rng.uniform(0, 8, size=size)).astype(np.float32)
    whole = part(size, slice(0, size))
    moment.write(state, whole, mx.array(start), mx.random.key(1000))
    for step in range(steps):
        moment.write(state, whole, beta * moment.read(state, whole), mx.random.key(step))
    left = np.array(moment.read(state, whole), np.float64) / start
    noise = {"float32": 1e-5, "bfloat16": 2**-8, "blocks8": 0.0453}[storage]
    assert abs(left.mean() - beta**steps) < 6 * noise * math.sqrt((steps + 1) / size)
    assert left.min() > 0


@pytest.mark.parametrize("rounding", ["stochastic", "compensated"])
@pytest.mark.parametrize("storage", STORAGES)
def test_a_block_of_large_and_tiny_gradients_takes_usual_steps(storage: str, rounding: str) -> None:
    """1e-12 beside 1 in each block, then zeros: AdamW never moves a weight by more than about a rate.

    With betas 0.9 and 0.99 the exact bound is (1 - 0.9) / root(1 - 0.99) = 1 times the corrections, at most
    about 2 here; a second moment rounded to zero would make steps of 1e5 rates.
    """
    rng = np.random.default_rng(0)
    size, rate = 10 * BLOCK, 1e-3
    scales = np.where(rng.random(size) < 0.5, 1e-12, 1.0)
    optimizer = Optimizer(OptimizerConfig(moments=storage, rounding=rounding, eps=1e-30), seed=0)
    weights = {"w": mx.zeros((size,))}
    for step in range(60):
        gradient = scales * rng.normal(size=size) if step < 40 else np.zeros(size)
        before = np.array(weights["w"], np.float64)
        weights, report = optimizer.step(weights, {"w": mx.array(gradient, dtype=mx.float32)}, rate)
        assert np.abs(np.array(weights["w"], np.float64) - before).max() < 3 * rate, step
    assert math.isfinite(report.kept_fraction)


@pytest.mark.parametrize("storage", ["bfloat16", "blocks8"])
def test_smaller_moments_lead_to_the_same_place(storage: str) -> None:
    """200 steps of noisy gradients on float32 weights, beside float32 moments: only the moments' noise differs."""
    rng = np.random.default_rng(0)
    signal = rng.normal(size=2000)
    optimizers = [Optimizer(OptimizerConfig(moments=m), seed=0) for m in ("float32", storage)]
    weights = [{"w": mx.zeros((2000,))} for _ in optimizers]
    for _ in range(200):
        gradient = {"w": mx.array(signal + rng.normal(size=2000), dtype=mx.float32)}
        for i, optimizer in enumerate(optimizers):
            weights[i], _ = optimizer.step(weights[i], gradient, 1e-3)
    truth, found = (np.array(one["w"], np.float64) for one in weights)
    assert (
        np.linalg.norm(found - truth) / np.linalg.norm(truth) < {"bfloat16": 0.01, "blocks8": 0.08}[storage]
    )
    assert found @ truth / (truth @ truth) == pytest.approx(1, abs=0.03)

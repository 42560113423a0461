"""AdamW against the paper in float64 and against MLX's own, its state, and clipping."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import mlx.core as mx
import mlx.optimizers
import numpy as np
import pytest

from mlx_sumrl.config import OptimizerConfig
from mlx_sumrl.policy.policy import Weights
from mlx_sumrl.training import moments
from mlx_sumrl.training.optimizer import HeldWeights, Optimizer, clip_scale

SHAPES = {"matrix": (4, 3), "vector": (5,), "cube": (2, 3, 2)}


def make_weights(dtype: mx.Dtype = mx.float32, size: float = 1.0) -> Weights:
    rng = np.random.default_rng(0)
    return {
        name: mx.array(rng.normal(scale=size, size=shape)).astype(dtype) for name, shape in SHAPES.items()
    }


def make_gradients(step: int, size: float = 1.0) -> Weights:
    """Of very different sizes, so that the denominator matters."""
    rng = np.random.default_rng(step + 1)
    scales = {"matrix": size, "vector": 1e-3 * size, "cube": 30.0 * size, "long": size}
    return {
        name: mx.array(scales[name] * rng.normal(size=shape)).astype(mx.float32)
        for name, shape in SHAPES.items()
    }


def as_numpy(weights: Weights) -> dict[str, np.ndarray]:
    return {name: np.array(array.astype(mx.float32), np.float64) for name, array in weights.items()}


class PlainAdamW:
    """Loshchilov and Hutter 2019, algorithm 2, line by line in float64; decay on matrices and larger only."""

    def __init__(self, beta1: float, beta2: float, eps: float, decay: float) -> None:
        self.beta1, self.beta2, self.eps, self.decay = beta1, beta2, eps, decay
        self.t = 0
        self.m: dict[str, np.ndarray] = {}
        self.v: dict[str, np.ndarray] = {}

    def step(
        self, theta: dict[str, np.ndarray], g: dict[str, np.ndarray], rate: float
    ) -> dict[str, np.ndarray]:
        self.t += 1
        new = {}
        for name, x in theta.items():
            self.m[name] = self.beta1 * self.m.get(name, 0.0) + (1 - self.beta1) * g[name]
            self.v[name] = self.beta2 * self.v.get(name, 0.0) + (1 - self.beta2) * g[name] ** 2
            m_hat = self.m[name] / (1 - self.beta1**self.t)
            v_hat = self.v[name] / (1 - self.beta2**self.t)
            decay = self.decay * x if x.ndim >= 2 else 0.0
            new[name] = x - rate * (m_hat / (np.sqrt(v_hat) + self.eps) + decay)
        return new


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("betas", "eps"), [((0.9, 0.99), 1e-8), ((0.8, 0.999), 1e-4)])
def test_fifty_steps_as_in_the_paper(decay: float, betas: tuple[float, float], eps: float) -> None:
    options = OptimizerConfig(betas=betas, eps=eps, weight_decay=decay)
    optimizer, plain = Optimizer(options, seed=0), PlainAdamW(*betas, eps, decay)
    weights = make_weights()
    start = truth = as_numpy(weights)
    for step in range(50):
        rate = 0.01 * (1 + step % 3)  # a schedule
        gradients = make_gradients(step)
        truth = plain.step(truth, as_numpy(gradients), rate)
        weights, report = optimizer.step(weights, gradients, rate)
        assert report.kept_fraction == pytest.approx(1, abs=1e-4)
    for name, found in as_numpy(weights).items():
        # 50 float32 roundings of weights of size 1, against a way of about 0.5.
        way = np.linalg.norm(truth[name] - start[name])
        assert np.linalg.norm(found - truth[name]) < 1e-5 * way, name
        first, second = (optimizer.state()[f"{moment}.{name}"] for moment in ("first", "second"))
        np.testing.assert_allclose(np.array(first), plain.m[name].reshape(-1), rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(np.array(second), plain.v[name].reshape(-1), rtol=1e-5)


def test_fifty_steps_as_in_mlx() -> None:
    options = OptimizerConfig(betas=(0.9, 0.99), weight_decay=0.1)
    optimizer = Optimizer(options, seed=0)
    theirs = mlx.optimizers.AdamW(
        learning_rate=0.01, betas=[0.9, 0.99], eps=1e-8, weight_decay=0.1, bias_correction=True
    )
    matrices = [name for name, shape in SHAPES.items() if len(shape) >= 2]  # theirs decays vectors too
    weights = expected = {name: array for name, array in make_weights().items() if name in matrices}
    start = as_numpy(weights)
    for step in range(50):
        gradients = {name: make_gradients(step)[name] for name in matrices}
        expected = theirs.apply_gradients(gradients, expected)
        weights, _ = optimizer.step(weights, gradients, 0.01)
    for name in matrices:
        found, truth = as_numpy(weights)[name], as_numpy(expected)[name]
        assert np.linalg.norm(found - truth) < 1e-5 * np.linalg.norm(truth - start[name]), name


def test_first_step_by_hand() -> None:
    # m / (1 - beta1) = g and v / (1 - beta2) = g²: one whole rate against the sign, however small the gradient.
    optimizer = Optimizer(OptimizerConfig(), seed=0)
    weights, _ = optimizer.step({"w": mx.array([1.0, 1.0])}, {"w": mx.array([1e-3, -7.0])}, 0.25)
    np.testing.assert_allclose(np.array(weights["w"]), [0.75, 1.25], rtol=1e-4)


def test_only_matrices_decay() -> None:
    optimizer = Optimizer(OptimizerConfig(weight_decay=0.5), seed=0)
    still = {name: mx.zeros(shape) for name, shape in SHAPES.items()}
    weights = make_weights()
    after, _ = optimizer.step(weights, still, 0.1)
    for name, shape in SHAPES.items():
        factor = 0.95 if len(shape) >= 2 else 1.0
        np.testing.assert_allclose(np.array(after[name]), factor * np.array(weights[name]), rtol=1e-6)


def test_gradients_may_be_bfloat16() -> None:
    gradients = {name: array.astype(mx.bfloat16) for name, array in make_gradients(0).items()}
    optimizer, exact = Optimizer(OptimizerConfig(), seed=0), Optimizer(OptimizerConfig(), seed=0)
    found, _ = optimizer.step(make_weights(), gradients, 0.1)
    truth, _ = exact.step(make_weights(), {n: a.astype(mx.float32) for n, a in gradients.items()}, 0.1)
    assert {array.dtype for array in optimizer.state().values()} == {mx.float32}
    for name in SHAPES:
        np.testing.assert_array_equal(np.array(found[name]), np.array(truth[name]))


def test_the_second_moment_decays_in_bfloat16_training() -> None:
    """0.999 rounds to 1 in bfloat16; kept in float32, a gradient of 1 followed by none is forgotten as it should."""
    optimizer = Optimizer(OptimizerConfig(betas=(0.9, 0.999)), seed=0)
    weights = make_weights(mx.bfloat16)
    ones = {name: mx.ones(shape, dtype=mx.bfloat16) for name, shape in SHAPES.items()}
    zeros = {name: mx.zeros(shape, dtype=mx.bfloat16) for name, shape in SHAPES.items()}
    for step in range(200):
        weights, _ = optimizer.step(weights, ones if step == 0 else zeros, 1e-6)
    for name in SHAPES:
        assert weights[name].dtype == mx.bfloat16
        first, second = (optimizer.state()[f"{moment}.{name}"] for moment in ("first", "second"))
        assert second.dtype == mx.float32
        np.testing.assert_allclose(np.array(second), 0.001 * 0.999**199, rtol=1e-4)
        np.testing.assert_allclose(np.array(first), 0.1 * 0.9**199, rtol=1e-4)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_restored_state_goes_on_bit_for_bit(tmp_path: Path, dtype: mx.Dtype) -> None:
    options = OptimizerConfig(weight_decay=0.01)

    def go_on(optimizer: Optimizer, weights: Weights, steps: range) -> Weights:
        for step in steps:
            weights, _ = optimizer.step(weights, make_gradients(step), 1e-4)
        return weights

    optimizer = Optimizer(options, seed=7)
    half = go_on(optimizer, make_weights(dtype), range(4))
    mx.save_safetensors(str(tmp_path / "state.safetensors"), optimizer.state())
    mx.save_safetensors(str(tmp_path / "weights.safetensors"), half)
    count = optimizer.count
    whole = go_on(optimizer, half, range(4, 9))

    resumed = Optimizer(options, seed=7)
    resumed.restore(mx.load(str(tmp_path / "state.safetensors")), count)
    # In the order of the model's weights: a file may list them in another.
    saved = mx.load(str(tmp_path / "weights.safetensors"))
    again = go_on(resumed, {name: saved[name] for name in SHAPES}, range(4, 9))
    assert resumed.count == optimizer.count == 9
    for name in SHAPES:
        assert again[name].dtype == dtype
        assert mx.array_equal(again[name], whole[name])
    assert resumed.state().keys() == optimizer.state().keys()
    assert all(mx.array_equal(resumed.state()[name], array) for name, array in optimizer.state().items())


@pytest.mark.parametrize("elements", [1, 200, 256, 1000])
@pytest.mark.parametrize("kind", ["adamw", "lion"])
def test_slices_are_the_whole_weight(monkeypatch: pytest.MonkeyPatch, elements: int, kind: str) -> None:
    # A slice is whole blocks of 128: the first and the last weight here take several, the last one half empty.
    monkeypatch.setattr(sys.modules[__name__], "SHAPES", {"matrix": (40, 13), "vector": (5,), "long": (700,)})
    options = OptimizerConfig(weight_decay=0.1, kind=kind)
    ends = []
    for size in (1 << 20, elements):
        monkeypatch.setattr(moments, "SLICE", size)
        optimizer, weights = Optimizer(options, seed=0), make_weights()
        for step in range(5):
            weights, report = optimizer.step(weights, make_gradients(step), 0.01)
        ends.append((weights | optimizer.state(), report.kept_fraction))
    (whole, kept), (sliced, kept_sliced) = ends
    assert all(mx.array_equal(whole[name], sliced[name]) for name in whole)
    assert kept == pytest.approx(kept_sliced, abs=1e-5)


def test_the_old_weights_and_gradients_are_left_alone() -> None:
    # A reference is a snapshot of weights that are trained on: nothing may be written in place.
    weights, gradients = make_weights(mx.bfloat16), make_gradients(0)
    before = as_numpy(weights), as_numpy(gradients)
    optimizer = Optimizer(OptimizerConfig(), seed=0)
    optimizer.step(weights, gradients, 0.1)
    for then, now in zip(before, (as_numpy(weights), as_numpy(gradients)), strict=True):
        assert all(np.array_equal(then[name], now[name]) for name in then)


def test_reset_is_a_new_start() -> None:
    optimizer = Optimizer(OptimizerConfig(), seed=7)
    first, _ = optimizer.step(make_weights(), make_gradients(0), 0.1)
    optimizer.reset()
    assert (optimizer.count, optimizer.state()) == (0, {})
    second, _ = optimizer.step(make_weights(), make_gradients(0), 0.1)
    assert all(mx.array_equal(first[name], second[name]) for name in SHAPES)


def test_a_norm_over_the_limit_is_scaled_down_to_it() -> None:
    # 3, 4 and 12 over two arrays: the norm of all of them is 13.
    gradients = {"a": mx.array([[3.0, 4.0]]), "b": mx.array([12.0])}
    scale, norm = clip_scale(gradients, 6.5)
    assert norm == pytest.approx(13)
    assert scale == pytest.approx(0.5)


def test_the_scale_multiplies_the_gradients() -> None:
    moved = []
    for factor, scale in ((1.0, 0.5), (0.5, 1.0)):
        held = HeldWeights(make_weights())
        gradients = {name: factor * array for name, array in make_gradients(0).items()}
        optimizer = Optimizer(OptimizerConfig(), seed=0)
        optimizer.move(held, gradients, 0.1, scale)
        moved.append(as_numpy(held.weights) | as_numpy(optimizer.state()))
    for name, array in moved[0].items():
        np.testing.assert_array_equal(array, moved[1][name], err_msg=name)  # a power of 2: bit for bit


def test_a_norm_within_the_limit_is_left_alone() -> None:
    gradients = {"a": mx.array([[3.0, 4.0]]), "b": mx.array([12.0])}
    scale, norm = clip_scale(gradients, 13.5)
    assert norm == pytest.approx(13)
    assert scale == 1.0


def test_a_norm_of_bfloat16_gradients_is_summed_in_float32() -> None:
    # bfloat16 has no number between 101 and 101.5.
    _, norm = clip_scale({"a": mx.ones((10_300,), dtype=mx.bfloat16)}, 1e9)
    assert norm == pytest.approx(math.sqrt(10_300))

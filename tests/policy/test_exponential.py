"""exp, softmax and SwiGLU of the CPU against float64, at the ends of the range and for what is not finite."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_sumrl.policy.exponential import exp, softmax, swiglu


@pytest.mark.parametrize(("low", "high", "tolerance"), [(-2, 2, 5e-7), (-87, 88, 6e-6)])
def test_exp(low: float, high: float, tolerance: float) -> None:
    x = np.random.default_rng(0).uniform(low, high, 400_000).astype(np.float32)
    found = np.array(exp(mx.array(x)), np.float64)
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)), rtol=tolerance)


def test_exp_at_the_ends() -> None:
    found = exp(mx.array([-np.inf, -1e30, -88.0, 0.0, -0.0, 89.0, np.inf, np.nan])).tolist()
    assert found[:5] == [0, 0, 0, 1, 1]
    assert found[5:7] == [np.inf, np.inf]
    assert np.isnan(found[7])
    assert exp(mx.zeros((2, 3, 4))).shape == (2, 3, 4)


def test_softmax() -> None:
    x = np.random.default_rng(1).normal(scale=5, size=(7, 301)).astype(np.float32)
    x[:, 5] = -np.inf
    e = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
    found = np.array(softmax(mx.array(x)))
    np.testing.assert_allclose(found, e / e.sum(axis=-1, keepdims=True), rtol=1e-5, atol=1e-12)
    assert (found[:, 5] == 0).all()


def test_swiglu_and_its_gradient() -> None:
    rng = np.random.default_rng(2)
    gate, x, weight = (rng.normal(scale=scale, size=(5, 70)) for scale in (6.0, 1.0, 1.0))
    gate[0, :4] = [200, -200, 90, -90]
    sigmoid = 1 / (1 + np.exp(-gate))

    def cost(gate: mx.array, x: mx.array) -> mx.array:
        return (swiglu(gate, x) * mx.array(weight, dtype=mx.float32)).sum()

    arrays = [mx.array(array, dtype=mx.float32) for array in (gate, x)]
    np.testing.assert_allclose(np.array(swiglu(*arrays)), gate * sigmoid * x, rtol=1e-5, atol=1e-6)
    of_gate, of_x = mx.grad(cost, argnums=(0, 1))(*arrays)
    np.testing.assert_allclose(
        np.array(of_gate), weight * x * sigmoid * (1 + gate * (1 - sigmoid)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(np.array(of_x), weight * gate * sigmoid, rtol=1e-5, atol=1e-6)

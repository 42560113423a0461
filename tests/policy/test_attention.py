"""Attention in parts against softmax by hand, and its gradients against those of the plain operations."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_sumrl.config import PolicyConfig
from mlx_sumrl.policy import attention, mlx_internals
from mlx_sumrl.policy.attention import causal_attention
from mlx_sumrl.policy.loading import load_policy
from tests.families import FAMILIES

SIZES = (1, 300, 4000, 1 << 18)
"""Scores at a time, from 16 queries of one row to everything."""
SCALE = 0.35

shapes = st.fixed_dictionaries(
    {
        "B": st.integers(1, 4),
        "K": st.integers(1, 3),  # heads of keys
        "R": st.integers(1, 3),  # heads of queries for each
        "T": st.integers(1, 40),
        "L": st.integers(0, 20),
        "E": st.integers(1, 8),
    }
)


def make_inputs(B: int, K: int, R: int, T: int, L: int, E: int, size: float = 1.0) -> list[np.ndarray]:
    """Queries, keys, values and, where L > 0, keys and values of a prefix."""
    rng = np.random.default_rng(B + 10 * T)
    sizes = [(B, K * R, T, E), (B, K, T, E), (B, K, T, E)] + ([(1, K, L, E)] * 2 if L else [])
    return [size * rng.normal(size=shape) for shape in sizes]


def by_hand(queries: np.ndarray, keys: np.ndarray, values: np.ndarray, *prefix: np.ndarray) -> np.ndarray:
    """In float64, one query at a time."""
    B, H, T, _ = queries.shape
    share = H // keys.shape[1]
    seen = np.zeros_like(queries)
    for b, h, t in np.ndindex(B, H, T):
        k, v = keys[b, h // share, : t + 1], values[b, h // share, : t + 1]
        if prefix:
            k = np.concatenate([prefix[0][0, h // share], k])
            v = np.concatenate([prefix[1][0, h // share], v])
        scores = SCALE * k @ queries[b, h, t]
        weights = np.exp(scores - scores.max())
        seen[b, h, t] = weights @ v / weights.sum()
    return seen


def plainly(queries: mx.array, keys: mx.array, values: mx.array, *prefix: mx.array) -> mx.array:
    """With keys and prefix repeated for whoever reads them, for MLX to differentiate."""
    B, H, T, _ = queries.shape
    if prefix:
        before = [mx.broadcast_to(array, (B, *array.shape[1:])) for array in prefix]
        keys = mx.concatenate([before[0], keys], axis=2)
        values = mx.concatenate([before[1], values], axis=2)
    keys, values = (mx.repeat(array, H // keys.shape[1], axis=1) for array in (keys, values))
    S = keys.shape[2]
    scores = SCALE * queries @ keys.swapaxes(-1, -2)
    scores = mx.where(mx.arange(S)[None, :] <= mx.arange(S - T, S)[:, None], scores, -1e30)
    return mx.softmax(scores, axis=-1) @ values


def ours(queries: mx.array, keys: mx.array, values: mx.array, *prefix: mx.array) -> mx.array:
    return causal_attention(queries, keys, values, SCALE, (prefix[0], prefix[1]) if prefix else None)


def relative_error(found: mx.array, truth: np.ndarray | mx.array) -> float:
    difference = np.array(found.astype(mx.float32), np.float64) - np.array(truth, np.float64)
    return float(np.linalg.norm(difference) / max(np.linalg.norm(np.array(truth)), 1e-6))


@settings(max_examples=60, deadline=None)
@given(shape=shapes, scores=st.sampled_from(SIZES))
def test_softmax_by_hand(shape: dict[str, int], scores: int) -> None:
    inputs = make_inputs(**shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SCORES", scores)
        found = ours(*(mx.array(array.astype(np.float32)) for array in inputs))
        mx.eval(found)
    assert found.dtype == mx.float32
    assert relative_error(found, by_hand(*inputs)) < 2e-6


@settings(max_examples=80, deadline=None)
@given(shape=shapes, scores=st.sampled_from(SIZES))
def test_gradients_of_everything(shape: dict[str, int], scores: int) -> None:
    """Queries, keys, values and the prefix that all rows read."""
    inputs = [mx.array(array.astype(np.float32)) for array in make_inputs(**shape)]
    cotangent = mx.random.normal(inputs[0].shape, key=mx.random.key(shape["L"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SCORES", scores)
        [output], found = mx.vjp(lambda *arrays: [ours(*arrays)], inputs, [cotangent])
        mx.eval(output, found)
    [same], truth = mx.vjp(lambda *arrays: [plainly(*arrays)], inputs, [cotangent])
    assert relative_error(output, same) < 2e-6
    assert len(found) == len(truth) == len(inputs)
    for own, other in zip(found, truth, strict=True):
        assert own.shape == other.shape
        # With one token and no prefix nothing depends on queries and keys: 0 but for rounding.
        assert np.linalg.norm(np.array(own - other)) < 1e-5 * np.linalg.norm(np.array(other)) + 1e-5


@pytest.mark.parametrize("L", [0, 7])
def test_the_plain_operations_are_softmax_by_hand(L: int) -> None:
    """So that the gradients above are compared with those of the right function."""
    inputs = make_inputs(B=2, K=2, R=2, T=5, L=L, E=4)
    found = plainly(*(mx.array(array.astype(np.float32)) for array in inputs))
    assert relative_error(found, by_hand(*inputs)) < 2e-6


@pytest.mark.parametrize("L", [0, 9])
@pytest.mark.parametrize("scores", SIZES)
def test_a_slope_by_finite_differences(scores: int, L: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Along a random direction of all inputs, from the float64 attention by hand."""
    monkeypatch.setattr(attention, "SCORES", scores)
    inputs = make_inputs(B=2, K=2, R=2, T=19, L=L, E=4)
    rng = np.random.default_rng(1)
    cotangent = rng.normal(size=inputs[0].shape)
    direction = [rng.normal(size=array.shape) for array in inputs]

    def at(step: float) -> float:
        return float(
            (by_hand(*(x + step * d for x, d in zip(inputs, direction, strict=True))) * cotangent).sum()
        )

    measured = (at(1e-5) - at(-1e-5)) / 2e-5
    single = [mx.array(array.astype(np.float32)) for array in inputs]
    _, found = mx.vjp(lambda *arrays: [ours(*arrays)], single, [mx.array(cotangent.astype(np.float32))])
    slope = sum((np.array(g, np.float64) * d).sum() for g, d in zip(found, direction, strict=True))
    assert slope == pytest.approx(measured, rel=1e-4)


@pytest.mark.parametrize("L", [0, 9])
def test_large_scores_stay_finite(L: int) -> None:
    """Scores of several hundred: nearly all of the weight is on one key."""
    inputs = make_inputs(B=2, K=2, R=2, T=12, L=L, E=4, size=30.0)
    single = [mx.array(array.astype(np.float32)) for array in inputs]
    [found], gradients = mx.vjp(
        lambda *arrays: [ours(*arrays)], single, [mx.ones(single[0].shape, dtype=mx.float32)]
    )
    assert relative_error(found, by_hand(*inputs)) < 1e-4
    assert all(np.isfinite(np.array(array)).all() for array in gradients)


@pytest.mark.parametrize("L", [0, 9])
@pytest.mark.parametrize("scores", SIZES)
def test_bfloat16(scores: int, L: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SCORES", scores)
    wide = [
        mx.array(array.astype(np.float32)).astype(mx.bfloat16).astype(mx.float32)
        for array in make_inputs(B=3, K=2, R=2, T=37, L=L, E=8)
    ]
    narrow = [array.astype(mx.bfloat16) for array in wide]
    cotangent = mx.random.normal(wide[0].shape, key=mx.random.key(0)).astype(mx.bfloat16)
    [output], found = mx.vjp(lambda *arrays: [ours(*arrays)], narrow, [cotangent])
    [same], truth = mx.vjp(lambda *arrays: [plainly(*arrays)], wide, [cotangent.astype(mx.float32)])
    for own, other in zip([output, *found], [same, *truth], strict=True):
        assert own.dtype == mx.bfloat16
        assert relative_error(own, other) < 0.02  # a few roundings of 0.4 %


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_replaced_is_put_back(family: str, family_folder: Callable[[str], Path]) -> None:
    policy = load_policy(PolicyConfig(model=str(family_folder(family)), tuning="full", dtype="float32"))
    layer = policy.model.layers[0]
    module = sys.modules[type(layer).__module__]
    before = dict(vars(module))
    asked: list[float] = []

    def attend(
        queries: mx.array, keys: mx.array, values: mx.array, cache: object, scale: float, mask: object
    ) -> mx.array:
        asked.append(scale)
        return causal_attention(queries, keys, values, scale)

    hidden = mx.random.normal((1, 4, 32), key=mx.random.key(0))
    for place in (0, 1):  # of lfm2's, the second attends
        attends = getattr(policy.model.layers[place], "is_attention_layer", True)
        usual = policy.model.layers[place](hidden, "causal" if attends else None)
        with mlx_internals.computing_by(layer, attend, lambda gate, x: 2 * gate * mx.sigmoid(gate) * x):
            assert vars(module)[mlx_internals.ATTENTION] is not before[mlx_internals.ATTENTION]
            changed = policy.model.layers[place](hidden, "causal" if attends else None)
        assert not np.allclose(usual, changed, atol=1e-3)  # twice the SwiGLU shows
    assert len(asked) == (1 if family == "lfm2" else 2)

    def fail() -> None:
        with mlx_internals.computing_by(layer, attend, lambda gate, x: gate):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(vars(module)[name] is value for name, value in before.items())

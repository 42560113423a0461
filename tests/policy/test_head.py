"""Log-probabilities and gradients of every kind of head, cut into tiles of every kind, against float64 by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_sumrl.policy import head, mlx_internals
from mlx_sumrl.policy.head import ALIVE, HeadOptions, head_gradient, tiles, token_logprobs

from .heads import KINDS, D, HeadModel, by_hand, make_head, wide

TOLERANCE = 1e-5
Found = tuple[np.ndarray, mx.array, dict[str, mx.array]]
"""Log-probabilities, and gradients with respect to hidden states and weights by the name inside the head."""
WAYS = ("tiles", "graph")
BUDGETS = (ALIVE * 4 * 7 * 64, ALIVE * 4 * 64 * 64, 10**9)
"""Bytes: tiles of a few tokens, of a part of the vocabulary, a single one."""


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(head, "NARROWEST", 64)
    return


def make_inputs(N: int, V: int, dtype: mx.Dtype = mx.float32) -> tuple[mx.array, mx.array, np.ndarray]:
    """Hidden states, targets (the first and last of the vocabulary among them), weights of the sum."""
    rng = np.random.default_rng(N)
    targets = rng.integers(0, V, N)
    targets[0], targets[-1] = 0, V - 1
    hidden = mx.array(rng.normal(size=(N, D)).astype(np.float32)).astype(dtype)
    return hidden, mx.array(targets.astype(np.int32)), rng.normal(size=N).astype(np.float32)


def found_by(
    way: str, model: HeadModel, hidden: mx.array, targets: mx.array, weights: np.ndarray, options: HeadOptions
) -> Found:
    """Tile by tile by `head_gradient`, or `token_logprobs` differentiated as part of a graph."""
    c = mx.array(weights)
    if way == "tiles":
        result = head_gradient(model, hidden, targets, options, lambda lp: ((lp * c).sum(), lp))
        assert result.value.item() == pytest.approx((np.array(result.rest) * weights).sum(), rel=1e-4)
        inside = {name.rsplit(".", 1)[-1]: array for name, array in result.weights.items()}
        assert {f"{path_of(model)}.{name}" for name in inside} == result.weights.keys()
        return np.array(result.rest), result.hidden_ND, inside

    def cost(trained: Any, hidden: mx.array) -> Any:
        model.update(trained)
        logprobs = token_logprobs(model, hidden, targets, options)
        return (logprobs * c).sum(), logprobs

    before = model.trainable_parameters()
    (_, logprobs), (gradients, d_hidden) = mx.value_and_grad(cost, argnums=(0, 1))(before, hidden)
    model.update(before)
    named = mlx_internals.named_arrays(gradients)
    return np.array(logprobs), d_hidden, {name.rsplit(".", 1)[-1]: array for name, array in named.items()}


def path_of(model: HeadModel) -> str:
    return "lm_head" if "lm_head" in model else "model.embed_tokens"


def relative_error(found: mx.array, truth: np.ndarray) -> float:
    return float(np.linalg.norm(wide(found) - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(
    N=st.integers(2, 40),
    V=st.integers(60, 300),
    budget=st.sampled_from(BUDGETS),
    temperature=st.sampled_from([1.0, 0.7]),
    cap=st.sampled_from([None, 3.0]),
    frozen=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1, 0.9]),
)
def test_every_head_by_hand(
    kind: str,
    way: str,
    N: int,
    V: int,
    budget: int,
    temperature: float,
    cap: float | None,
    frozen: bool,
    smoothing: float,
) -> None:
    model = make_head(kind, V, cap=cap)
    if frozen:
        model.freeze()
    trained = set(mlx_internals.named_arrays(model.head.trainable_parameters()))
    expected = {"tied": {"weight"}, "untied": {"weight"}, "bias": {"weight", "bias"}, "dora": {"m"}}
    assert trained >= (set() if frozen else expected.get(kind, set()))
    hidden, targets, weights = make_inputs(N, V)
    truth = by_hand(model, hidden, targets, weights, temperature, cap, smoothing)
    options = HeadOptions(budget, temperature, smoothing=smoothing)
    logprobs, d_hidden, gradients = found_by(way, model, hidden, targets, weights, options)
    np.testing.assert_allclose(logprobs, truth.logprobs, rtol=1e-5, atol=1e-5)
    assert relative_error(d_hidden, truth.hidden) < TOLERANCE
    assert gradients.keys() == trained
    for name, gradient in gradients.items():
        assert relative_error(gradient, truth.weights[name]) < TOLERANCE, name
    without = token_logprobs(model, hidden, targets, options, differentiable=False)
    np.testing.assert_allclose(without, truth.logprobs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("kind", ["tied", "untied", "bias", "quantised", "8 bits"])
def test_bfloat16_gradients_are_rounded_once(kind: str, budget: int, way: str) -> None:
    """However many tiles were added up: a sum of bfloat16 numbers would be several steps away."""
    hidden, targets, weights = make_inputs(200, 131, mx.bfloat16)
    model = make_head(kind, 131, mx.bfloat16)
    truth = by_hand(model, hidden, targets, weights)
    logprobs, d_hidden, gradients = found_by(way, model, hidden, targets, weights, HeadOptions(budget))
    assert logprobs.dtype == np.float32
    np.testing.assert_allclose(logprobs, truth.logprobs, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == set(mlx_internals.named_arrays(model.head.trainable_parameters()))
    for found, exact in [(d_hidden, truth.hidden), *((gradients[n], truth.weights[n]) for n in gradients)]:
        assert found.dtype == mx.bfloat16
        once = wide(mx.array(exact.astype(np.float32)).astype(mx.bfloat16))
        step = 2.0**-7 * np.abs(exact) + 1e-6 * np.abs(exact).max()
        assert (np.abs(wide(found) - once) <= step).all()
        assert (wide(found) == once).mean() > 0.99


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("frozen", [False, True])
def test_extreme_logits(frozen: bool, budget: int, way: str) -> None:
    """Logits of +-80 and one token that is all but certain: its log-probability is 0, another's -160."""
    V = 131
    model = make_head("untied", V)
    rng = np.random.default_rng(0)
    signs = np.where(rng.random((V, D)) < 0.5, -1.0, 1.0)
    model.lm_head.weight = mx.array((signs / 8).astype(np.float32))
    if frozen:
        model.freeze()
    hidden = mx.array((10 * signs[[5, 5, 100, 100, 64]]).astype(np.float32))  # logit 80 of their own token
    model.lm_head.weight[7] = -model.lm_head.weight[5]
    targets, weights = mx.array([5, 7, 100, 3, 130]), np.array([1.0, 1.0, 2.0, -1.0, 0.5], np.float32)
    truth = by_hand(model, hidden, targets, weights)
    assert truth.logprobs[0] > -1e-12
    assert truth.logprobs[1] == pytest.approx(-160)
    logprobs, d_hidden, gradients = found_by(way, model, hidden, targets, weights, HeadOptions(budget))
    np.testing.assert_allclose(logprobs, truth.logprobs, rtol=1e-5, atol=1e-6)
    for found, exact in [(d_hidden, truth.hidden), *((gradients[n], truth.weights[n]) for n in gradients)]:
        assert np.isfinite(wide(found)).all()
        np.testing.assert_allclose(wide(found), exact, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["tied", "untied", "lora"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_filters_see_whole_rows(kind: str, budget: int, way: str) -> None:
    """top-k in float64: what is kept, and the target itself; gradients by differences along a direction."""
    V, k = 131, 9
    model = make_head(kind, V)
    hidden, targets, weights = make_inputs(11, V)
    options = HeadOptions(budget, temperature=0.8, top_k=k)
    rng = np.random.default_rng(5)
    direction = rng.normal(size=hidden.shape)
    matrix = wide(model.head.weight) if kind != "lora" else None
    if matrix is None:
        a, b = wide(model.head.lora_a), wide(model.head.lora_b)
        matrix = wide(model.head.linear.weight) + model.head.scale * (a @ b).T

    def at(step: float) -> tuple[np.ndarray, float]:
        z = (wide(hidden) + step * direction) @ matrix.T / 0.8
        keep = z >= np.sort(z, axis=-1)[:, -k][:, None]
        keep[np.arange(len(z)), np.array(targets)] = True
        z = np.where(keep, z, -np.inf)
        z = z - z.max(axis=-1, keepdims=True)
        logprobs = z[np.arange(len(z)), np.array(targets)] - np.log(np.exp(z).sum(axis=-1))
        return logprobs, float((logprobs * weights).sum())

    logprobs, d_hidden, _ = found_by(way, model, hidden, targets, weights, options)
    np.testing.assert_allclose(logprobs, at(0.0)[0], rtol=1e-5, atol=1e-5)
    measured = (at(1e-6)[1] - at(-1e-6)[1]) / 2e-6
    assert (wide(d_hidden) * direction).sum() == pytest.approx(measured, rel=1e-4)


@settings(max_examples=200, deadline=None)
@given(
    N=st.integers(1, 3000),
    V=st.integers(1, 30_000),
    width=st.integers(1, 2000),
    budget=st.integers(1, 10**8),
    keep=st.booleans(),
)
def test_tiles_cover_all_and_stay_within_the_budget(
    N: int, V: int, width: int, budget: int, keep: bool
) -> None:
    cut = tiles(N, V, width, budget, keep)
    for ranges, size in ((cut.tokens, N), (cut.vocabulary, V)):
        assert ranges[0].start == 0
        assert ranges[-1].stop == size
        assert all(one.stop == other.start for one, other in itertools.pairwise(ranges))
    largest = ALIVE * 4 * cut.tokens[0].stop * cut.vocabulary[0].stop
    narrowest = min(head.NARROWEST, V)
    assert largest <= max(budget, ALIVE * 4 * narrowest)  # a token by the narrowest tile, at least
    if keep and ALIVE * 4 * max(N, width) * V <= budget:
        assert cut.single


@pytest.mark.usefixtures("exact_buffers")
class TestMemory:
    """V = 20,000, N = 256: all logits are 20 MB, the matrix and its gradient 5 MB each."""

    V, N = 20_000, 256
    LOGITS, MATRIX = 4 * V * N, 4 * V * D
    BUDGET = 4_000_000

    @pytest.fixture(autouse=True)
    def usual_tiles(self, monkeypatch: pytest.MonkeyPatch, narrow: None) -> None:
        monkeypatch.setattr(head, "NARROWEST", 2048)

    def peak(self, way: str, model: HeadModel, budget: int, smoothing: float = 0.0) -> int:
        """Bytes above what was there before."""
        options = HeadOptions(budget, smoothing=smoothing)
        hidden, targets, weights = make_inputs(self.N, self.V)
        c = mx.array(weights)
        mx.eval(model.parameters(), hidden, targets, c)
        trained = model.trainable_parameters()

        def cost(trained: Any, hidden: mx.array) -> mx.array:
            model.update(trained)
            return (token_logprobs(model, hidden, targets, options) * c).sum()

        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        if way == "tiles":
            head_gradient(model, hidden, targets, options, lambda lp: ((lp * c).sum(), None))
        else:
            mx.eval(mx.value_and_grad(cost, argnums=(0, 1))(trained, hidden))
        peak = mx.get_peak_memory() - before
        model.update(trained)
        return peak

    @pytest.mark.parametrize("frozen", [False, True])
    @pytest.mark.parametrize("way", WAYS)
    def test_no_table_of_logits(self, way: str, frozen: bool) -> None:
        """Measured: 1.3 times the budget, and 2.9 where a graph is evaluated, which runs ahead; 7 tables without."""
        model = make_head("untied", self.V)
        if frozen:
            model.freeze()
        gradient = 0 if frozen else self.MATRIX
        small = self.peak(way, model, self.BUDGET)
        whole = self.peak(way, model, 10**10)
        times = 1.5 if way == "tiles" else 3
        assert small - gradient < times * self.BUDGET < 0.6 * self.LOGITS
        if not frozen:  # one that is not trained is always cut
            assert whole - gradient > 2 * self.LOGITS

    @pytest.mark.parametrize("frozen", [False, True])
    def test_smoothed_targets_are_no_table_either(self, frozen: bool) -> None:
        """Measured: 1.1 times the budget, as without."""
        model = make_head("untied", self.V)
        if frozen:
            model.freeze()
        gradient = 0 if frozen else self.MATRIX
        assert self.peak("tiles", model, self.BUDGET, smoothing=0.1) - gradient < 1.5 * self.BUDGET


def test_smoothing_by_hand_on_three_tokens() -> None:
    """Logits log 1, log 2, log 5 make p = 1/8, 1/4, 5/8; a target of .7 on the last and .1 on each."""
    model = make_head("untied", 3)
    logits = np.log(np.array([1.0, 2.0, 5.0], np.float32))
    weight = np.zeros((3, D), np.float32)
    weight[:, 0] = logits
    model.lm_head.weight = mx.array(weight)
    hidden = mx.array(np.eye(1, D, dtype=np.float32))
    options = HeadOptions(10**9, smoothing=0.3)
    found = token_logprobs(model, hidden, mx.array([2]), options).item()
    assert found == pytest.approx(0.8 * np.log(5 / 8) + 0.1 * np.log(2 / 8) + 0.1 * np.log(1 / 8))
    result = head_gradient(model, hidden, mx.array([2]), options, lambda lp: (lp.sum(), None))
    slope = np.array([0.1 - 1 / 8, 0.1 - 2 / 8, 0.8 - 5 / 8])
    np.testing.assert_allclose(np.array(result.weights["lm_head.weight"])[:, 0], slope, atol=1e-6)
    np.testing.assert_allclose(np.array(result.hidden_ND)[0, 0], slope @ logits, atol=1e-6)


def test_smoothing_and_a_filter_are_refused() -> None:
    model = make_head("tied", 60)
    hidden, targets, _ = make_inputs(4, 60)
    with pytest.raises(ValueError, match="filter"):
        token_logprobs(model, hidden, targets, HeadOptions(10**9, top_k=5, smoothing=0.1))

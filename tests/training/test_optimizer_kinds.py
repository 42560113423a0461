"""Every optimiser with every rounding and storage: it steps, it goes on bit for bit, and it is what its paper says."""

from __future__ import annotations

from itertools import product
from math import sqrt
from pathlib import Path
from typing import get_args

import mlx.core as mx
import mlx.optimizers
import numpy as np
import pytest

from mlx_sumrl.config import OptimizerConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.policy.policy import Weights
from mlx_sumrl.training import moments
from mlx_sumrl.training.optimizer import Optimizer

SHAPES = {
    "embed_tokens.weight": (30, 8),
    "q_proj.weight": (8, 20),
    "up_proj.weight": (24, 8),
    "norm.weight": (8,),
}


def options_of(field: str) -> tuple[str, ...]:
    return get_args(OptimizerConfig.model_fields[field].annotation)


COMBINATIONS = list(product(options_of("kind"), options_of("rounding"), options_of("moments")))


def make_weights(dtype: mx.Dtype = mx.float32) -> Weights:
    rng = np.random.default_rng(0)
    return {
        name: mx.array(rng.normal(scale=0.02, size=shape)).astype(dtype) for name, shape in SHAPES.items()
    }


def make_gradients(step: int) -> Weights:
    rng = np.random.default_rng(step + 1)
    return {name: mx.array(rng.normal(size=shape), dtype=mx.float32) for name, shape in SHAPES.items()}


def as_numpy(weights: Weights) -> dict[str, np.ndarray]:
    return {name: np.array(array.astype(mx.float32), np.float64) for name, array in weights.items()}


def test_the_options_are_seen() -> None:
    assert len(COMBINATIONS) == 4 * 3 * 3


@pytest.mark.parametrize(("kind", "rounding", "storage"), COMBINATIONS)
def test_every_combination_goes_down_and_resumes_bit_for_bit(
    kind: str, rounding: str, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Towards zero, by gradients that are the weights themselves; cut in the middle, through files."""
    monkeypatch.setattr(moments, "SLICE", 128)  # the embedding takes two slices
    options = OptimizerConfig(kind=kind, rounding=rounding, moments=storage, weight_decay=0.01)

    def go_on(optimizer: Optimizer, weights: Weights, steps: range) -> Weights:
        for _ in steps:
            weights, report = optimizer.step(weights, weights, 1e-3)
            assert np.isfinite(report.kept_fraction)
        return weights

    start = make_weights(mx.bfloat16)
    optimizer = Optimizer(options, seed=7)
    half = go_on(optimizer, start, range(3))
    mx.save_safetensors(str(tmp_path / "state.safetensors"), optimizer.state())
    count = optimizer.count
    whole = go_on(optimizer, half, range(3, 6))
    resumed = Optimizer(options, seed=7)
    resumed.restore(mx.load(str(tmp_path / "state.safetensors")), count)
    again = go_on(resumed, half, range(3, 6))

    for name in SHAPES:
        assert (again[name].dtype, again[name].shape) == (mx.bfloat16, SHAPES[name])
        assert mx.array_equal(again[name], whole[name]), name
        lengths = [np.linalg.norm(as_numpy(weights)[name]) for weights in (start, whole)]
        assert lengths[1] < 0.99 * lengths[0], name
    assert resumed.state().keys() == optimizer.state().keys()
    for name, array in optimizer.state().items():
        assert resumed.state()[name].dtype == array.dtype
        assert mx.array_equal(resumed.state()[name], array), name
    held = {name for name in optimizer.state() if name.startswith("compensation.")}
    assert held == ({f"compensation.{name}" for name in SHAPES} if rounding == "compensated" else set())


class PlainLion:
    """Chen et al. 2023, program 1, line by line in float64; decay on matrices only."""

    def __init__(self, beta1: float, beta2: float, decay: float) -> None:
        self.beta1, self.beta2, self.decay = beta1, beta2, decay
        self.m: dict[str, np.ndarray] = {}

    def step(
        self, theta: dict[str, np.ndarray], g: dict[str, np.ndarray], rate: float
    ) -> dict[str, np.ndarray]:
        new = {}
        for name, x in theta.items():
            m = self.m.get(name, np.zeros_like(x))
            update = np.sign(self.beta1 * m + (1 - self.beta1) * g[name])
            self.m[name] = self.beta2 * m + (1 - self.beta2) * g[name]
            new[name] = x - rate * (update + (self.decay * x if x.ndim >= 2 else 0.0))
        return new


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lion_as_in_the_paper(decay: float) -> None:
    optimizer = Optimizer(OptimizerConfig(kind="lion", betas=(0.9, 0.99), weight_decay=decay), seed=0)
    plain = PlainLion(0.9, 0.99, decay)
    weights = make_weights()
    start = truth = as_numpy(weights)
    for step in range(50):
        gradients = make_gradients(step)
        truth = plain.step(truth, as_numpy(gradients), 1e-3)
        weights, _ = optimizer.step(weights, gradients, 1e-3)
    for name, found in as_numpy(weights).items():
        assert np.linalg.norm(found - truth[name]) < 1e-5 * np.linalg.norm(truth[name] - start[name])
        np.testing.assert_allclose(
            np.array(optimizer.state()[f"first.{name}"]), plain.m[name].reshape(-1), rtol=1e-4, atol=1e-7
        )
    assert set(optimizer.state()) == {f"first.{name}" for name in SHAPES}


class PlainAdafactor:
    """Shazeer and Stern 2018, algorithms 4 and 5 without the relative step, in float64."""

    def __init__(self) -> None:
        self.t = 0
        self.rows: dict[str, np.ndarray] = {}
        self.columns: dict[str, np.ndarray] = {}

    def step(
        self, theta: dict[str, np.ndarray], g: dict[str, np.ndarray], rate: float
    ) -> dict[str, np.ndarray]:
        self.t += 1
        beta2 = 1 - self.t**-0.8
        new = {}
        for name, x in theta.items():
            square = g[name] ** 2 + 1e-30
            if x.ndim == 2:
                row, column = square.sum(axis=1), square.sum(axis=0)
                self.rows[name] = beta2 * self.rows.get(name, 0.0) + (1 - beta2) * row
                self.columns[name] = beta2 * self.columns.get(name, 0.0) + (1 - beta2) * column
                v = np.outer(self.rows[name], self.columns[name]) / self.rows[name].sum()
            else:
                v = self.rows[name] = beta2 * self.rows.get(name, 0.0) + (1 - beta2) * square
            u = g[name] / np.sqrt(v)
            new[name] = x - rate * u / max(1, np.sqrt(np.mean(u**2)))
        return new


def test_adafactor_as_in_the_paper() -> None:
    optimizer, plain = Optimizer(OptimizerConfig(kind="adafactor"), seed=0), PlainAdafactor()
    weights = make_weights()
    start = truth = as_numpy(weights)
    for step in range(20):
        gradients = make_gradients(step)
        truth = plain.step(truth, as_numpy(gradients), 1e-3)
        weights, _ = optimizer.step(weights, gradients, 1e-3)
    for name, found in as_numpy(weights).items():
        assert np.linalg.norm(found - truth[name]) < 1e-4 * np.linalg.norm(truth[name] - start[name]), name
    sizes = {name: array.size for name, array in optimizer.state().items()}
    assert sizes == {
        **{f"row.{name}": shape[0] for name, shape in SHAPES.items() if len(shape) == 2},
        **{f"column.{name}": shape[1] for name, shape in SHAPES.items() if len(shape) == 2},
        "square.norm.weight": 8,
    }


def test_adafactor_takes_a_large_matrix_in_bands_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """30 rows of 8 in bands of 16 are what two matrices of 16 and 14 rows would be."""
    monkeypatch.setattr(moments, "SLICE", 16 * 8 + 3)
    matrix, optimizer = (
        make_weights()["embed_tokens.weight"],
        Optimizer(OptimizerConfig(kind="adafactor"), seed=0),
    )
    whole, bands = {"w": matrix}, {"a": matrix[:16], "b": matrix[16:]}
    other = Optimizer(OptimizerConfig(kind="adafactor"), seed=0)
    for step in range(5):
        gradient = make_gradients(step)["embed_tokens.weight"]
        whole, _ = optimizer.step(whole, {"w": gradient}, 1e-3)
        bands, _ = other.step(bands, {"a": gradient[:16], "b": gradient[16:]}, 1e-3)
    assert mx.array_equal(whole["w"], mx.concatenate([bands["a"], bands["b"]]))


def test_muon_makes_hidden_matrices_orthogonal_and_leaves_the_rest_to_adamw() -> None:
    """The first update is rate x 0.2 x root(larger side) x an orthogonal matrix, up to Newton-Schulz's singular values
    of 0.7 to 1.2, in the gradient's own directions."""
    rate, weights, gradients = 0.25, make_weights(), make_gradients(0)
    after, report = Optimizer(OptimizerConfig(kind="muon"), seed=0).step(weights, gradients, rate)
    adamw, _ = Optimizer(OptimizerConfig(kind="adamw"), seed=0).step(weights, gradients, rate)
    for name in ("embed_tokens.weight", "norm.weight"):
        np.testing.assert_allclose(np.array(after[name]), np.array(adamw[name]), rtol=1e-6)
    for name in ("q_proj.weight", "up_proj.weight"):
        moved = -(as_numpy(after)[name] - as_numpy(weights)[name]) / (rate * 0.2 * sqrt(max(SHAPES[name])))
        u, _, vt = np.linalg.svd(as_numpy(gradients)[name], full_matrices=False)
        inner = u.T @ moved @ vt.T
        assert np.abs(inner - np.diag(np.diag(inner))).max() < 1e-3
        assert np.all((np.diag(inner) > 0.6) & (np.diag(inner) < 1.3))
    assert report.kept_fraction == pytest.approx(1, abs=1e-3)


def test_muon_goes_on_as_theirs_does() -> None:
    theirs = mlx.optimizers.Muon(learning_rate=1e-3, momentum=0.9, weight_decay=0.0)
    ours = Optimizer(OptimizerConfig(kind="muon", betas=(0.9, 0.99)), seed=0)
    weights = expected = {"w": make_weights()["q_proj.weight"]}
    for step in range(10):
        gradients = {"w": make_gradients(step)["q_proj.weight"]}
        expected = theirs.apply_gradients(gradients, expected)
        weights, _ = ours.step(weights, gradients, 1e-3 / (0.2 * sqrt(20)))
    np.testing.assert_allclose(np.array(weights["w"]), np.array(expected["w"]), atol=1e-6)


def test_a_state_of_other_options_is_refused() -> None:
    weights, gradients = make_weights(), make_gradients(0)
    kinds = [{"kind": kind} for kind in options_of("kind")]
    others = [*kinds, {"moments": "bfloat16"}, {"moments": "blocks8"}]
    for one, other in product(others, others):
        optimizer = Optimizer(OptimizerConfig(**one), seed=0)
        optimizer.step(weights, gradients, 1e-3)
        optimizer.options = OptimizerConfig(**other)
        if one != other:
            with pytest.raises(UserError, match=r"optimizer\.kind and optimizer\.moments"):
                optimizer.step(weights, gradients, 1e-3)
            optimizer.reset()
        optimizer.step(weights, gradients, 1e-3)


def test_rounding_may_change() -> None:
    weights, gradients = make_weights(mx.bfloat16), make_gradients(0)
    optimizer = Optimizer(OptimizerConfig(rounding="nearest"), seed=0)
    for rounding in ("nearest", "compensated", "stochastic"):
        optimizer.options = OptimizerConfig(rounding=rounding)
        weights, _ = optimizer.step(weights, gradients, 1e-3)
        held = any(name.startswith("compensation.") for name in optimizer.state())
        assert held == (rounding == "compensated")


def test_seeds_and_steps_have_their_own_noise() -> None:
    """The codes of one moment, from the same gradient: another seed or step draws otherwise."""
    size = 4000
    gradient = {"w": mx.random.normal((size,), key=mx.random.key(0))}

    made = Optimizer(OptimizerConfig(moments="blocks8"), 0)
    made.step({"w": mx.zeros((size,))}, gradient, 1e-3)
    empty = {name: mx.zeros_like(array) for name, array in made.state().items()}

    def codes(seed: int, count: int) -> np.ndarray:
        optimizer = Optimizer(OptimizerConfig(moments="blocks8"), seed)
        optimizer.restore(empty, count)
        optimizer.step({"w": mx.zeros((size,))}, gradient, 1e-3)
        return np.array(optimizer.state()["second_codes.w"])

    assert (codes(1, 0) == codes(1, 0)).all()
    # Two independent draws between two neighbours agree two times in three on average.
    for other in (codes(2, 0), codes(1, 1)):
        assert 0.6 < (codes(1, 0) == other).mean() < 0.75

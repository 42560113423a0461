"""Every member of the loss family has the loss and the gradient that the formulas say, by finite differences.

Tolerance: float32 log-probabilities near -1 are off by 1e-7, a ratio near 3 by a few times that, and a few
dozen of them are summed: 1e-5 of the gradient's length is allowed.
"""

from __future__ import annotations

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest

from mlx_sumrl.config import GrpoConfig
from mlx_sumrl.training.loss import LossInputs, Normalizer, clip_bounds, grpo_loss, ratio_level, token_means

from .oracle import Floats, LossSpec, TabularBatch, relative_error
from .tables import loss_and_gradient, options_of

TOLERANCE = 1e-5
KINDS = ("grpo", "bnpo", "dr_grpo", "dapo", "gspo")
LEVELS = ("token", "sequence", None)
CORRECTIONS = ("clip", "truncate", "mask", "none")
KLS = ((0.0, "k3"), (0.3, "k2"), (0.3, "k3"), (0.3, "k3_weighted"))

CONTEXTS, VOCABULARY = 4, 5
THETA: Floats = np.random.default_rng(0).normal(size=(CONTEXTS, VOCABULARY))

# (advantage, ratio of each token). Per token and per completion (geometric mean) they lie on both sides of every
# bound: 1/2, 0.8, 1.2, 1.28 (dapo's) and 2.
ROWS = (
    (0.9, [1.24, 1.3, 1.15]),  # mean 1.23: cut at 1.2, not at 1.28
    (1.6, [2.7, 2.4, 3.1, 2.2]),
    (-0.7, [2.7, 2.3]),
    (-1.3, [0.3, 0.45, 0.35]),
    (0.8, [0.3, 0.95]),
    (-0.4, [0.7, 0.72, 0.9, 0.6]),
    (1.1, [1.05]),
    (0.5, [1.55, 1.45]),
    (0.0, [1.6, 0.6]),
)
BOUNDS = (0.5, 0.8, 1.2, 1.28, 2.0)


def make_batch(*, stale: bool) -> TabularBatch:
    rng = np.random.default_rng(1)
    contexts = [[int(rng.integers(CONTEXTS)) for _ in ratios] for _, ratios in ROWS]
    tokens = [[int(rng.integers(VOCABULARY)) for _ in ratios] for _, ratios in ROWS]
    empty = [[0.0] * len(ratios) for _, ratios in ROWS]
    advantages = [advantage for advantage, _ in ROWS]
    now = TabularBatch(contexts, tokens, empty, empty, advantages, max_tokens=6).logprobs(THETA)
    sampler = [
        [p - (math.log(r) if stale else 0.0) for p, r in zip(row, ratios, strict=True)]
        for row, (_, ratios) in zip(now, ROWS, strict=True)
    ]
    reference = [[p + float(rng.normal(scale=0.5)) for p in row] for row in now]
    return TabularBatch(contexts, tokens, sampler, reference, advantages, max_tokens=6)


FRESH, STALE = make_batch(stale=False), make_batch(stale=True)


def test_no_ratio_sits_on_a_bound() -> None:
    # Otherwise a finite difference would straddle a kink; and each side of each bound must be inhabited.
    ratios = STALE.ratios(THETA)
    per_token = [r for row in ratios for r in row]
    per_completion = [math.exp(sum(map(math.log, row)) / len(row)) for row in ratios]
    for level in (per_token, per_completion):
        assert min(abs(r - bound) for r in level for bound in BOUNDS) > 1e-3
        for low, high in itertools.pairwise((0.0, *BOUNDS, 9.0)):
            assert any(low < r < high for r in level), (low, high)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("batch", [FRESH, STALE], ids=["fresh", "stale"])
def test_loss_and_gradient(kind: str, correction: str, batch: TabularBatch) -> None:
    for level, (beta, kl) in itertools.product(LEVELS, KLS):
        spec = LossSpec(kind, correction, level, beta=beta, kl=kl)
        value, gradient, _ = loss_and_gradient(batch, THETA, spec)
        truth = batch.loss(THETA, THETA, spec)
        assert value == pytest.approx(truth, rel=TOLERANCE, abs=1e-6), spec
        assert relative_error(gradient, batch.gradient(THETA, spec)) < TOLERANCE, spec


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epsilon_high", [0.1, 0.5, 2.0])
def test_bounds_that_were_set(kind: str, epsilon_high: float) -> None:
    spec = LossSpec(kind, "clip", epsilon_low=0.35, epsilon_high=epsilon_high)
    assert relative_error(loss_and_gradient(STALE, THETA, spec)[1], STALE.gradient(THETA, spec)) < TOLERANCE


@pytest.mark.parametrize("correction", ["truncate", "mask"])
@pytest.mark.parametrize("cap", [1.1, 2.5, 50.0])
def test_a_cap_that_was_set(correction: str, cap: float) -> None:
    for level in LEVELS:
        spec = LossSpec("dapo", correction, level, cap=cap)
        found, truth = loss_and_gradient(STALE, THETA, spec)[1], STALE.gradient(THETA, spec)
        if np.linalg.norm(truth) == 0:
            assert not found.any()
        else:
            assert relative_error(found, truth) < TOLERANCE


def test_what_is_left_open_is_filled_in() -> None:
    assert clip_bounds(GrpoConfig(loss="dapo")) == (0.8, 1.28)
    assert clip_bounds(GrpoConfig(loss="grpo")) == (0.8, 1.2)
    assert clip_bounds(GrpoConfig(loss="dapo", epsilon_high=0.2)) == (0.8, 1.2)
    assert [ratio_level(GrpoConfig(loss=kind)) for kind in KINDS] == ["token"] * 4 + ["sequence"]
    assert ratio_level(GrpoConfig(loss="gspo", ratio_level="token")) == "token"


def test_fresh_samples_make_all_corrections_one() -> None:
    # On the policy's own samples the ratio is 1: nothing to correct, and the gradient is REINFORCE's.
    gradients = [loss_and_gradient(FRESH, THETA, LossSpec("bnpo", c))[1] for c in CORRECTIONS]
    for gradient in gradients[1:]:
        assert relative_error(gradient, gradients[0]) < TOLERANCE


def test_four_tokens_by_hand() -> None:
    """Two completions of 3 and 1 tokens, p = 1/2 everywhere; q = 1/2, 1/4, 1/2 and 1/2; A = 1 and -2.

    Ratios 1, 2, 1 | 1; clipped at 1.2 where A > 0: token losses -1, -1.2, -1 | 2.
    """
    half, quarter = math.log(0.5), math.log(0.25)
    inputs = LossInputs(
        logprobs_BT=mx.array([[half, half, half], [half, 0.0, 0.0]]),
        sampler_logprobs_BT=mx.array([[half, quarter, half], [half, 0.0, 0.0]]),
        advantages_B=mx.array([1.0, -2.0]),
        mask_BT=mx.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]),
    )
    normalizer = Normalizer(completions=2, tokens=4, max_tokens=5)
    expected = {
        "grpo": (-3.2 / 3 + 2) / 2,
        "bnpo": -1.2 / 4,
        "dapo": (-3.28 + 2) / 4,  # its upper bound is 1.28
        "dr_grpo": -1.2 / 10,
        # 2^(1/3) = 1.26 for the whole completion, clipped to 1.2
        "gspo": (-1.2 + 2) / 2,
    }
    for kind, value in expected.items():
        loss, sums = grpo_loss(inputs, GrpoConfig(loss=kind), normalizer)
        assert loss.item() == pytest.approx(value, abs=1e-6), kind
        means = token_means({name: array.item() for name, array in sums.items()})
        sequence = kind == "gspo"
        assert means["ratio/mean"] == pytest.approx((3 * 2 ** (1 / 3) + 1) / 4 if sequence else 5 / 4)
        assert means["clip_fraction"] == pytest.approx(3 / 4 if sequence else 1 / 4)
        # KL(q || p) as the mean of log q - log p over sampled tokens.
        assert means["ratio/sampler_kl"] == pytest.approx(-math.log(2) / 4)
        assert "kl" not in means


def test_metrics_agree_with_the_oracle() -> None:
    tokens = sum(len(row) for row in STALE.tokens)
    ratios = STALE.ratios(THETA)
    pairs = [(r, a) for row, a in zip(ratios, STALE.advantages, strict=True) for r in row]
    touched = {
        "clip": sum((r > 1.2 and a > 0) or (r < 0.8 and a < 0) for r, a in pairs),
        "truncate": sum(r > 2 for r, _ in pairs),
        "mask": sum(not 0.5 <= r <= 2 for r, _ in pairs),
        "none": 0,
    }
    for correction, count in touched.items():
        sums = loss_and_gradient(STALE, THETA, LossSpec("grpo", correction, beta=0.3))[2]
        means = token_means(sums)
        assert sums["tokens"] == tokens
        assert means["clip_fraction"] == pytest.approx(count / tokens)
        assert means["ratio/mean"] == pytest.approx(sum(r for r, _ in pairs) / tokens, rel=1e-6)
        differences = np.concatenate(STALE.reference) - np.concatenate(STALE.logprobs(THETA))
        k3 = np.mean(np.exp(differences) - differences - 1)
        assert means["kl"] == pytest.approx(k3, rel=1e-5)


def test_kl_without_a_reference_is_refused() -> None:
    one = mx.array([[-1.0]])
    inputs = LossInputs(one, one, mx.array([1.0]), mx.ones((1, 1)))
    with pytest.raises(ValueError, match="reference"):
        grpo_loss(inputs, options_of(LossSpec("grpo", beta=0.1)), Normalizer(1, 1, 1))


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(
    ("correction", "advantage", "log_ratio"),
    [
        ("clip", 1.0, 120.0),
        ("clip", 0.0, 120.0),
        ("clip", 1.0, -120.0),
        ("clip", -1.0, -120.0),
        ("truncate", 1.0, 120.0),
        ("truncate", -1.0, 120.0),
        ("mask", 1.0, 120.0),
        ("mask", -1.0, 120.0),
        ("mask", -1.0, -120.0),
    ],
)
def test_a_ratio_that_overflows_is_corrected(
    correction: str, advantage: float, log_ratio: float, level: str
) -> None:
    # e^120 is infinite in float32: a correction that takes it out must not leave 0 * inf behind.
    def loss(logprobs: mx.array) -> mx.array:
        inputs = LossInputs(
            logprobs_BT=logprobs,
            sampler_logprobs_BT=mx.array([[-1.0 - log_ratio], [-1.0]]),
            advantages_B=mx.array([advantage, 1.0]),
            mask_BT=mx.ones((2, 1)),
        )
        options = GrpoConfig(loss="dr_grpo", correction=correction, ratio_level=level)
        return grpo_loss(inputs, options, Normalizer(completions=1, tokens=2, max_tokens=1))[0]

    value, gradient = mx.value_and_grad(loss)(mx.array([[-1.0], [-1.0]]))
    assert math.isfinite(value.item())
    # Only a truncated weight (the cap, 2) still teaches; the other completion is as it would be alone.
    left = -2.0 * advantage if correction == "truncate" else 0.0
    np.testing.assert_allclose(np.array(gradient)[:, 0], [left, -1.0], atol=1e-6)

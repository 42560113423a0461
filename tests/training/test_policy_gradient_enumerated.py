"""The loss moves the policy up the reward and toward the reference: shown by writing out every completion.

The vocabulary is {a, b, stop}; a completion ends at stop or at its longest. Averaged over all completions with
their probabilities under the sampler, the gradient of the loss is an exact expectation, to be compared with
finite differences of the expected reward or of the KL in float64. Advantages are rewards minus a constant: a
group's own mean and deviation are random, and would add a bias that is not the loss's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from .oracle import Floats, LossSpec, TabularBatch, finite_differences, log_softmax, relative_error
from .tables import loss_and_gradient

STOP = 2
TOLERANCE = 1e-5  # float32 against float64, up to 15 completions summed
Completion = tuple[int, ...]


def completions(longest: int) -> list[Completion]:
    """All of them, by length."""
    return [
        ids
        for n in range(1, longest + 1)
        for ids in itertools.product(range(3), repeat=n)
        if STOP not in ids[:-1] and (ids[-1] == STOP or n == longest)
    ]


def contexts(longest: int) -> dict[Completion, int]:
    """What can stand before a token -> its row in the table of logits."""
    prefixes = [ids for n in range(longest) for ids in itertools.product(range(2), repeat=n)]
    return {prefix: row for row, prefix in enumerate(prefixes)}


def probability(theta: Floats, ids: Completion, rows: dict[Completion, int]) -> float:
    table = log_softmax(theta)
    return math.exp(sum(table[rows[ids[:t]], token] for t, token in enumerate(ids)))


def reward(ids: Completion) -> float:
    """Any function of the whole completion: likes a first, hates b after a, and likes to stop at 2 tokens."""
    return (
        (ids[0] == 0) - 0.7 * (ids[:2] == (0, 1)) + 0.5 * (len(ids) == 2 and ids[-1] == STOP) + 0.1 * len(ids)
    )


def expected_reward(theta: Floats, longest: int) -> float:
    rows = contexts(longest)
    return sum(probability(theta, ids, rows) * reward(ids) for ids in completions(longest))


def expected_loss_gradient(
    theta: Floats, sampler: Floats, spec: LossSpec, longest: int, advantage: Callable[[Completion], float]
) -> Floats:
    """E over the sampler's completions of the gradient of the loss of one completion."""
    rows, total = contexts(longest), np.zeros_like(theta)
    for ids in completions(longest):
        batch = TabularBatch(
            contexts=[[rows[ids[:t]] for t in range(len(ids))]],
            tokens=[list(ids)],
            sampler=[[]],
            reference=[[0.0] * len(ids)],
            advantages=[advantage(ids)],
            max_tokens=longest,
        )
        batch.sampler[0] = batch.logprobs(sampler)[0]
        total += probability(sampler, ids, rows) * loss_and_gradient(batch, theta, spec)[1]
    return total


def random_logits(longest: int, seed: int) -> Floats:
    return np.random.default_rng(seed).normal(size=(len(contexts(longest)), 3))


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_all_completions_are_there(longest: int) -> None:
    rows, theta = contexts(longest), random_logits(longest, 0)
    assert sum(probability(theta, ids, rows) for ids in completions(longest)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("longest", [1, 2, 3])
@pytest.mark.parametrize("correction", ["none", "clip", "truncate", "mask"])
@pytest.mark.parametrize("baseline", [0.0, 0.4])
def test_dr_grpo_on_fresh_samples_is_the_policy_gradient(
    longest: int, correction: str, baseline: float
) -> None:
    theta = random_logits(longest, seed=longest)
    truth = -finite_differences(lambda x: expected_reward(x, longest), theta) / longest
    found = expected_loss_gradient(
        theta, theta, LossSpec("dr_grpo", correction), longest, lambda ids: reward(ids) - baseline
    )
    assert relative_error(found, truth) < TOLERANCE


@pytest.mark.parametrize("kind", ["grpo", "gspo"])
def test_dividing_by_its_own_length_is_not_the_policy_gradient(kind: str) -> None:
    # 1 / |o| weighs short completions more (Liu et al. 2025, section 3.1): another direction, not another size.
    theta = random_logits(3, seed=3)
    truth = -finite_differences(lambda x: expected_reward(x, 3), theta)
    found = expected_loss_gradient(theta, theta, LossSpec(kind, "none"), 3, reward)
    cosine = float((found * truth).sum() / np.linalg.norm(found) / np.linalg.norm(truth))
    assert 0 < cosine < 0.999


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_single_tokens_from_another_sampler_are_corrected_exactly(level: str) -> None:
    theta, sampler = random_logits(1, seed=4), random_logits(1, seed=5)
    truth = -finite_differences(lambda x: expected_reward(x, 1), theta)
    found = expected_loss_gradient(
        theta, sampler, LossSpec("dr_grpo", "none", level), 1, lambda ids: reward(ids) - 0.3
    )
    assert relative_error(found, truth) < TOLERANCE
    # A cap that no ratio reaches leaves the weight alone; one that is reached does not.
    capped = expected_loss_gradient(
        theta, sampler, LossSpec("dr_grpo", "truncate", level, cap=1e3), 1, reward
    )
    assert relative_error(capped, truth) < TOLERANCE
    biased = expected_loss_gradient(
        theta, sampler, LossSpec("dr_grpo", "truncate", level, cap=1.05), 1, reward
    )
    assert relative_error(biased, truth) > 0.05


def test_longer_completions_from_another_sampler_give_the_surrogate() -> None:
    """With a ratio per token, what is exact for a stale sampler is the surrogate of conservative policy iteration.

    Each token is reweighted by itself, while the tokens before it and after it stay the sampler's: that is the
    gradient of L(theta) = sum over tokens of E_q[prefix] E_p[token] E_q[rest] of the reward (Kakade and Langford
    2002; Schulman et al. 2015, eq. 3). It is the policy gradient only where p = q.
    """
    longest = 3
    rows = contexts(longest)
    theta, sampler = random_logits(longest, seed=6), random_logits(longest, seed=7)
    sampler_table = log_softmax(sampler)

    def surrogate(x: Floats) -> float:
        table = log_softmax(x)
        return sum(
            probability(sampler, ids, rows)
            * math.exp(table[rows[ids[:t]], token] - sampler_table[rows[ids[:t]], token])
            * reward(ids)
            for ids in completions(longest)
            for t, token in enumerate(ids)
        )

    found = expected_loss_gradient(theta, sampler, LossSpec("dr_grpo", "none"), longest, reward)
    assert relative_error(found, -finite_differences(surrogate, theta) / longest) < TOLERANCE
    truth = -finite_differences(lambda x: expected_reward(x, longest), theta) / longest
    assert relative_error(found, truth) > 0.05


def kl(p: Floats, q: Floats) -> float:
    """KL(softmax p || softmax q), summed over rows."""
    log_p, log_q = log_softmax(p), log_softmax(q)
    return float((np.exp(log_p) * (log_p - log_q)).sum())


def expected_kl_gradient(theta: Floats, reference: Floats, sampler: Floats, estimator: str) -> Floats:
    """E over the sampler's next token of the gradient of the KL term with beta 1, summed over contexts."""
    total = np.zeros_like(theta)
    weights, log_q, log_ref = np.exp(log_softmax(sampler)), log_softmax(sampler), log_softmax(reference)
    for c, v in np.ndindex(*theta.shape):
        batch = TabularBatch([[c]], [[v]], [[log_q[c, v]]], [[log_ref[c, v]]], [0.0], max_tokens=1)
        total += (
            weights[c, v] * loss_and_gradient(batch, theta, LossSpec("dr_grpo", beta=1.0, kl=estimator))[1]
        )
    return total


THETA, REFERENCE, FOREIGN = (np.random.default_rng(seed).normal(size=(3, 4)) for seed in (8, 9, 10))
FORWARD = finite_differences(lambda x: kl(REFERENCE, x), THETA)
REVERSE = finite_differences(lambda x: kl(x, REFERENCE), THETA)


@pytest.mark.parametrize(("estimator", "truth"), [("k3", FORWARD), ("k2", REVERSE), ("k3_weighted", REVERSE)])
def test_which_kl_an_estimator_descends_on_own_samples(estimator: str, truth: Floats) -> None:
    assert relative_error(FORWARD, REVERSE) > 0.1  # the two can be told apart
    assert relative_error(expected_kl_gradient(THETA, REFERENCE, THETA, estimator), truth) < TOLERANCE


def test_only_weighted_k3_is_right_for_another_sampler() -> None:
    assert relative_error(expected_kl_gradient(THETA, REFERENCE, FOREIGN, "k3_weighted"), REVERSE) < TOLERANCE
    for estimator in ("k2", "k3"):
        found = expected_kl_gradient(THETA, REFERENCE, FOREIGN, estimator)
        assert min(relative_error(found, REVERSE), relative_error(found, FORWARD)) > 0.05

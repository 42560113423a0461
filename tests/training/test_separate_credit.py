"""Rewards that pay for stopping alone, or for what is said alone: by hand, by enumeration, against the usual loss."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from pydantic import ValidationError

from mlx_sumrl.config import GrpoConfig, RunConfig
from mlx_sumrl.training.advantages import group_advantages
from mlx_sumrl.training.loss import LossInputs, Normalizer, StopInputs, grpo_loss

B, T, V = 3, 4, 6
STOPS = (1, 4)
TOKENS = np.array([[2, 0, 1, 0], [3, 5, 0, 2], [4, 0, 0, 0]])
LENGTHS = np.array([3, 4, 1])
"""The second was cut; the others stopped, each with another token."""
MASK = (np.arange(T) < LENGTHS[:, None]).astype(np.float32)
STOPPED = np.isin(TOKENS, STOPS) * MASK
NORMALIZER = Normalizer(completions=B, tokens=int(LENGTHS.sum()), max_tokens=T)


def logits_of(seed: int) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=(B, T, V)).astype(np.float32))


def inputs_of(
    logits_BTV: mx.array, sampler_BT: mx.array, content: list[float], stop: list[float]
) -> LossInputs:
    logprobs_BTV = logits_BTV - mx.logsumexp(logits_BTV, axis=-1, keepdims=True)
    own_BT = mx.take_along_axis(logprobs_BTV, mx.array(TOKENS)[..., None], axis=-1)[..., 0]
    stop_BT = mx.logsumexp(logprobs_BTV[..., list(STOPS)], axis=-1)
    mask = mx.array(MASK)
    return LossInputs(
        logprobs_BT=own_BT * mask,
        sampler_logprobs_BT=sampler_BT,
        advantages_B=mx.array(content),
        mask_BT=mask,
        stops=StopInputs(stop_BT * mask, mx.array(STOPPED.astype(np.float32)), mx.array(stop)),
    )


def gradient(
    seed: int, content: list[float], stop: list[float], together: bool, **options: object
) -> np.ndarray:
    """Of the loss with respect to the logits [B, T, V]; the sampler was another policy."""
    config = GrpoConfig.model_validate(options)
    logits = logits_of(seed)
    sampler_BT = inputs_of(logits + 0.3 * logits_of(seed + 1), mx.zeros((B, T)), content, stop).logprobs_BT

    def loss(logits_BTV: mx.array) -> mx.array:
        inputs = inputs_of(logits_BTV, sampler_BT, content, stop)
        return grpo_loss(replace(inputs, stops=None) if together else inputs, config, NORMALIZER)[0]

    return np.array(mx.grad(loss)(logits))


@pytest.mark.parametrize("ratio_level", ["token", "sequence"])
@pytest.mark.parametrize("correction", ["clip", "truncate", "mask", "none"])
@pytest.mark.parametrize("loss", ["grpo", "bnpo", "dr_grpo", "dapo", "gspo"])
def test_one_advantage_for_both_is_the_usual_gradient(loss: str, correction: str, ratio_level: str) -> None:
    options = {"loss": loss, "correction": correction, "ratio_level": ratio_level}
    advantages = [1.3, -0.7, 0.4]
    usual = gradient(0, advantages, advantages, True, **options)
    assert np.abs(usual).max() > 0.01
    np.testing.assert_allclose(gradient(0, advantages, advantages, False, **options), usual, atol=2e-6)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


@pytest.mark.parametrize("which", ["content", "stop"])
def test_each_moves_its_own_decision_alone(which: str) -> None:
    """On the policy's own samples, by the derivatives of log p(token | stop or not) and of log p(stop or not)."""
    logits = np.array(logits_of(5), np.float64)
    advantages, none = [1.0, -2.0, 0.5], [0.0] * B
    content, stop = (advantages, none) if which == "content" else (none, advantages)

    def loss(logits_BTV: mx.array) -> mx.array:
        own = inputs_of(logits_BTV, mx.zeros((B, T)), content, stop)
        own = replace(own, sampler_logprobs_BT=mx.stop_gradient(own.logprobs_BT))
        return grpo_loss(own, GrpoConfig(loss="bnpo"), NORMALIZER)[0]

    found = np.array(mx.grad(loss)(mx.array(logits.astype(np.float32))))
    p = softmax(logits)
    is_stop = np.isin(np.arange(V), STOPS)
    p_stop = (p * is_stop).sum(-1, keepdims=True)
    same = is_stop == STOPPED[..., None].astype(bool)  # tokens of the decision that was taken
    conditional = np.where(same, p, 0) / np.where(same, p, 0).sum(-1, keepdims=True)
    if which == "content":
        slope = np.eye(V)[TOKENS] - conditional
        assert np.abs(np.where(same, 0, slope)).max() == 0, "the other decision's tokens keep their part"
    else:
        # d log p(decision) / dz = p(v | decision) - p(v)
        slope = conditional - p
        assert np.allclose((slope / p)[..., is_stop].std(-1), 0), "stop tokens move together"
    expected = -np.array(advantages)[:, None, None] * slope * MASK[..., None] / LENGTHS.sum()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert p_stop.min() > 0.01


def test_the_policy_gradient_of_a_length_by_enumeration() -> None:
    """A policy whose words do not touch when it ends: what stopping earns is then all there is to earn, and the mean
    of the separate gradient over every text is the derivative of the expected reward."""
    rng = np.random.default_rng(3)
    word, end = (
        rng.normal(size=2),
        rng.normal(size=2),
    )  # logits of two words; log odds of stopping at two places
    reward = {1: 0.3, 2: -1.0, 3: 0.7}  # by tokens, stop token included; 3 was cut

    def texts(parameters: np.ndarray) -> list[tuple[float, int, list[int], list[bool]]]:
        words, ends = softmax(parameters[:2]), 1 / (1 + np.exp(-parameters[2:]))
        found = [(ends[0], 1, [], [True])]
        for a in range(2):
            found.append(((1 - ends[0]) * words[a] * ends[1], 2, [a], [False, True]))
            for b in range(2):
                found.append(((1 - ends[0]) * words[a] * (1 - ends[1]) * words[b], 3, [a, b], [False, False]))
        return found

    def expected(parameters: np.ndarray) -> float:
        return sum(p * reward[length] for p, length, _, _ in texts(parameters))

    start = np.concatenate([word, end])
    slope = np.array([(expected(start + e) - expected(start - e)) / 2e-6 for e in 1e-6 * np.eye(4)])
    total = np.zeros(4)
    for p, length, words, decisions in texts(start):
        L = len(decisions)
        tokens = [*words, 2][:L]

        def loss(
            parameters: mx.array, tokens: list[int] = tokens, decisions: list[bool] = decisions
        ) -> mx.array:
            L = len(tokens)
            going = mx.log1p(-mx.sigmoid(parameters[2:]))
            words_V = parameters[:2] - mx.logsumexp(parameters[:2])
            stop = mx.log(mx.sigmoid(parameters[2:]))[:L]
            own = mx.stack([stop[t] if decisions[t] else going[t] + words_V[tokens[t]] for t in range(L)])
            stops = StopInputs(stop[None], mx.array([[float(d) for d in decisions]]), mx.array([1.0]))
            known = LossInputs(
                own[None], mx.stop_gradient(own)[None], mx.zeros(1), mx.ones((1, L)), stops=stops
            )
            return grpo_loss(known, GrpoConfig(loss="dr_grpo"), Normalizer(1, L, 1))[0]

        total += p * reward[length] * -np.array(mx.grad(loss)(mx.array(start.astype(np.float32))))
    np.testing.assert_allclose(total, slope, atol=1e-5)
    assert np.abs(slope[:2]).max() < 1e-8, "words earn nothing here"
    assert np.abs(total[:2]).max() == 0, "and are not moved, by no text"


def test_advantages_are_of_the_rewards_that_pay_for_a_decision() -> None:
    rng = np.random.default_rng(0)
    contributions_PGR, weights_R = rng.normal(size=(2, 4, 3)), np.ones(3)
    options = GrpoConfig()
    found = group_advantages(contributions_PGR, weights_R, options, ("stop", "content", "all"))
    assert found.stop_PG is not None
    for values, chosen in ((found.values_PG, [1, 2]), (found.stop_PG, [0, 2])):
        alone = group_advantages(contributions_PGR[..., chosen], weights_R[chosen], options)
        np.testing.assert_array_equal(values, alone.values_PG)
        assert alone.stop_PG is None
    together = group_advantages(contributions_PGR, weights_R, options, ("all",) * 3)
    np.testing.assert_array_equal(
        together.values_PG, group_advantages(contributions_PGR, weights_R, options).values_PG
    )


@pytest.mark.parametrize("normalize", ["sum", "each"])
def test_a_decision_that_nothing_pays_for_has_no_advantage(normalize: str) -> None:
    contributions_PGR = np.array([[[1.0], [2.0]], [[3.0], [3.0]]])
    options = GrpoConfig.model_validate({"normalize_rewards": normalize})
    found = group_advantages(contributions_PGR, np.ones(1), options, ("stop",))
    assert found.stop_PG is not None
    assert found.values_PG.tolist() == [[0, 0], [0, 0]]
    assert found.stop_PG.tolist() == [[-1, 1], [0, 0]]
    assert found.zero_spread == 1


@pytest.mark.parametrize("normalize", ["sum", "each"])
def test_what_has_no_weight_pays_for_no_decision(normalize: str) -> None:
    """And the head need not say how likely it was to stop."""
    contributions_PGR = np.array([[[1.0, 0.0], [2.0, 0.0]], [[3.0, 0.0], [5.0, 0.0]]])
    options = GrpoConfig.model_validate({"normalize_rewards": normalize})
    found = group_advantages(contributions_PGR, np.array([1.0, 0.0]), options, ("all", "stop"))
    assert found.stop_PG is None
    assert found.values_PG.tolist() == [[-1, 1], [-1, 1]]
    paid = group_advantages(contributions_PGR, np.array([1.0, 0.5]), options, ("all", "stop"))
    assert paid.stop_PG is not None


@pytest.mark.parametrize("sampling", [{"top_p": 0.9}, {"top_k": 20}])
def test_deciding_about_stopping_needs_a_whole_distribution(sampling: dict[str, float]) -> None:
    rewards = [{"kind": "rougeL"}, {"kind": "within", "credit": "stop"}]
    given = {"policy": {"model": "m"}, "stages": [{"name": "s", "steps": 1, "rewards": rewards}]}
    RunConfig.model_validate(given)
    with pytest.raises(ValidationError, match=r"'within' has credit: stop, and sampling\.top_p"):
        RunConfig.model_validate({**given, "sampling": sampling})

"""Paying each part for what it adds: by hand, by enumeration of every group, and through the rewards of a stage."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import ValidationError

from mlx_sumrl.config import GrpoConfig, RewardConfig, RunConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.rewards.scoring import build_rewards
from mlx_sumrl.rollouts.types import Completion, Group
from mlx_sumrl.training.advantages import group_advantages
from mlx_sumrl.training.parts import PartByPart, advantages_to_go, beginnings, cuts


def test_by_hand() -> None:
    """Three completions of 5, 5 and 2 tokens, looked at after 2 and after 4."""
    totals_PG = np.array([[1.0, 0.5, 0.3]])
    so_far = [np.array([[0.4, 0.4, 0.3]]), np.array([[0.9, 0.1, 0.3]])]
    found = advantages_to_go(totals_PG, so_far, [2, 4], np.array([[5, 5, 2]]), scale=False)
    first = (0.4, -0.1, -0.3)  # 1, .5 and .3 less their mean
    second = (0.25, -0.25, 0.0)  # .6 and .1 to go, less their mean; the third has ended
    third = (-0.15, 0.15, 0.0)  # .1 and .4 to go
    expected = np.array([[first, first, second, second, third]]).transpose(0, 2, 1)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    scaled = advantages_to_go(totals_PG, so_far, [2, 4], np.array([[5, 5, 2]]), scale=True)
    np.testing.assert_allclose(scaled, expected / totals_PG.std(), atol=1e-12)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_without_cuts_it_is_the_usual_advantage(scale: str) -> None:
    totals_PG = np.random.default_rng(0).normal(size=(3, 4))
    totals_PG[1] = 0.7
    options = GrpoConfig.model_validate({"scale_advantages": scale})
    usual = group_advantages(totals_PG[..., None], np.ones(1), options).values_PG
    found = advantages_to_go(totals_PG, [], [], np.full((3, 4), 2), scale == "group")
    np.testing.assert_allclose(found, np.stack([usual, usual], axis=-1), atol=1e-12)
    assert (found[1] == 0).all()


def test_the_mean_gradient_is_that_of_whole_texts_whatever_the_beginning_is_worth() -> None:
    """Every group of two texts of two tokens, by its probability: half of the derivative of the expected reward, as
    for any group whose mean holds a completion itself; and with a spread that is less."""
    rng = np.random.default_rng(1)
    parameters = rng.normal(size=3)  # log odds of token 1 at first, after a 0, after a 1
    reward = {
        text: float(value)
        for text, value in zip(itertools.product((0, 1), repeat=2), rng.normal(size=4), strict=True)
    }
    worth = {0: 0.9, 1: -1.7}

    def chances(p: np.ndarray) -> dict[tuple[int, ...], float]:
        ones = 1 / (1 + np.exp(-p))
        return {
            (a, b): (ones[0] if a else 1 - ones[0]) * (ones[1 + a] if b else 1 - ones[1 + a])
            for a, b in itertools.product((0, 1), repeat=2)
        }

    def expected(p: np.ndarray) -> float:
        return sum(chance * reward[text] for text, chance in chances(p).items())

    slope = np.array([(expected(parameters + e) - expected(parameters - e)) / 2e-6 for e in 1e-6 * np.eye(3)])
    ones = 1 / (1 + np.exp(-parameters))
    steps = {
        (a, b): np.array([[a - ones[0], 0, 0], [0, b - ones[1] if not a else 0, b - ones[2] if a else 0]])
        for a, b in reward
    }  # d log p(token t) / d parameters
    means, squares = {}, {}
    for name, at, so_far in (("parts", [1], worth), ("whole", [], {})):
        total, square = np.zeros(3), 0.0
        for pair in itertools.product(chances(parameters).items(), repeat=2):
            (one, p), (other, q) = pair
            totals = np.array([[reward[one], reward[other]]])
            known = [np.array([[so_far[one[0]], so_far[other[0]]]])] if at else []
            found = advantages_to_go(totals, known, at, np.array([[2, 2]]), scale=False)
            gradient = sum(found[0, i] @ steps[text] for i, text in enumerate((one, other))) / 2
            total += p * q * gradient
            square += p * q * float(gradient @ gradient)
        means[name], squares[name] = total, square
    np.testing.assert_allclose(means["whole"], slope / 2, atol=1e-8)
    np.testing.assert_allclose(means["parts"], slope / 2, atol=1e-8)


WORDS = ["the", "boss", "hid", "my", "phone", "and", "left"]


def said(*ids: int) -> Completion:
    return Completion((*ids, 99), (-1.0,) * (len(ids) + 1), "stop", 0, decode(ids))


def decode(ids: Sequence[int]) -> str:
    return " ".join(WORDS[i] for i in ids)


def stage(**first: object) -> RunConfig:
    rewards = [
        {"kind": "rougeL", "weight": 2, **first},
        {"kind": "length"},
        {"kind": "within", "credit": "stop"},
    ]
    return RunConfig.model_validate(
        {"policy": {"model": "m"}, "stages": [{"name": "s", "steps": 1, "rewards": rewards}]}
    )


def test_of_a_stage_each_token_has_what_its_part_adds() -> None:
    config = stage(every=2)
    texts = [(0, 1, 2, 3, 4), (5, 6, 0, 1, 2), (0, 1)]
    group = Group(Example("1", (1,), "", "", "the boss hid my phone"), tuple(said(*ids) for ids in texts))
    rewards = build_rewards(config.stages[0], config.length)
    scores = rewards.score([group])
    credits_R = [reward.credit for reward in config.stages[0].rewards]
    usual = group_advantages(scores.weighted_PGR, scores.weights_R, config.grpo, credits_R)
    parts = PartByPart.of(config.stages[0], config, decode)
    assert parts is not None
    found = parts([group], scores, usual)
    assert found.stop_PG is usual.stop_PG
    assert found.values_PGT is not None
    assert found.values_PGT.shape == (1, 3, 6)
    np.testing.assert_allclose(found.values_PGT[..., 0], usual.values_PG, atol=1e-12)
    assert cuts([group], 2) == [2, 4]
    assert [c.text for c in beginnings([group], 2, decode)[0].completions] == [
        "the boss",
        "and left",
        "the boss",
    ]
    # ROUGE-L F1 after two words: 2 of 2 and 2 of 5 (4/7), none, and 4/7; a length is paid at the end. All three are
    # still there: the third has its stop token to come.
    totals = scores.weighted_PGR[0][:, :2].sum(-1)
    to_go = totals - 2 * np.array([4 / 7, 0, 4 / 7])
    np.testing.assert_allclose(found.values_PGT[0, :, 2], (to_go - to_go.mean()) / totals.std(), atol=1e-12)
    assert (found.values_PGT[0, 2, 4:] == 0).all(), "after its end there is nothing to teach"


def test_a_stage_without_such_rewards_has_none() -> None:
    config = stage()
    assert PartByPart.of(config.stages[0], config, decode) is None


@pytest.mark.parametrize("kind", ["length", "within", "language"])
def test_what_says_nothing_of_a_beginning_is_refused(kind: str) -> None:
    with pytest.raises(ValidationError, match=f"'{kind}', which cannot be paid part by part"):
        RewardConfig.model_validate({"kind": kind, "every": 8})


def test_parts_of_an_answer_after_its_reasoning_are_refused() -> None:
    config = stage(every=4)
    with pytest.raises(ValidationError, match=r"'rougeL' is paid part by part .*answer\.after"):
        RunConfig.model_validate({**config.model_dump(), "answer": {"after": "</think>"}})


@pytest.mark.parametrize("sampling", [{"top_p": 0.9}, {"top_k": 20}])
def test_deciding_about_stopping_needs_a_whole_distribution(sampling: dict[str, float]) -> None:
    config = stage()
    with pytest.raises(ValidationError, match=r"'within' has credit: stop, and sampling\.top_p"):
        RunConfig.model_validate({**config.model_dump(), "sampling": sampling})


@pytest.mark.parametrize("other", [{"gate": {"reward": "within"}}, {"credit": "stop"}])
def test_what_cannot_be_paid_part_by_part_is_refused(other: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="'rougeL' is paid part by part"):
        RewardConfig.model_validate({"kind": "rougeL", "every": 8, **other})

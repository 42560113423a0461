"""The length rewards, by hand, at target 64 and tolerance 5."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

from mlx_sumrl.config import LengthConfig, RewardConfig, StageConfig
from mlx_sumrl.rewards import LengthReward, WithinReward, build_rewards, length_reward


@pytest.mark.parametrize(
    ("length", "expected"),
    [(64, 0.0), (63, -1 / 64), (65, -1 / 64), (32, -0.5), (96, -0.5), (0, -1.0), (128, -1.0), (1000, -1.0)],
)
def test_finished_completion_loses_its_relative_distance_and_at_most_one(completion, length, expected):
    assert length_reward(completion(length), 64) == expected


def test_on_target_is_plain_zero_not_minus_zero(completion):
    assert math.copysign(1.0, length_reward(completion(64), 64)) == 1.0


@pytest.mark.parametrize("length", [1, 63, 64, 65, 500])
def test_unfinished_completion_gets_the_lowest_value_whatever_its_length(completion, length):
    assert length_reward(completion(length, "length"), 64) == -1.0


def test_length_reward_of_groups(completion, group):
    groups = [group(completion(64), completion(48)), group(completion(64, "length"), completion(80))]
    np.testing.assert_array_equal(LengthReward("length", 64)(groups), [[0.0, -0.25], [-1.0, -0.25]])


def test_within_ends_at_the_tolerance_and_needs_a_stop(completion, group):
    lengths = [58, 59, 64, 69, 70]
    groups = [
        group(*(completion(n) for n in lengths)),
        group(*(completion(n, "length") for n in lengths)),
    ]
    within_PG = WithinReward("within", LengthConfig(target=64, tolerance=5))(groups)
    np.testing.assert_array_equal(within_PG, [[0, 1, 1, 1, 0], [0, 0, 0, 0, 0]])
    assert within_PG.dtype == np.float64


def test_a_margin_is_taken_from_the_tolerance_at_both_ends(completion, group):
    lengths = [59, 60, 61, 64, 67, 68]
    one = group(*map(completion, lengths))
    length = LengthConfig(target=64, tolerance=5)
    np.testing.assert_array_equal(WithinReward("within", length, margin=2)([one]), [[0, 0, 1, 1, 1, 0]])
    np.testing.assert_array_equal(
        WithinReward("within", length, margin=9)([one]), [[0, 0, 1, 1, 1, 0]], "half of the tolerance at most"
    )
    short = group(*map(completion, [22, 23, 25, 26]), target=24)
    shares = LengthConfig(target=64, targets=(24,), tolerance=3, tolerance_share=0.08)
    np.testing.assert_array_equal(WithinReward("within", shares, margin=1)([short]), [[1, 1, 1, 1]])
    np.testing.assert_array_equal(WithinReward("within", shares, margin=2)([short]), [[1, 1, 1, 1]])
    exact = WithinReward("within", LengthConfig(target=24, tolerance=1), margin=1)
    np.testing.assert_array_equal(exact([group(*map(completion, [22, 23, 25, 26]))]), [[0, 1, 1, 0]])


def test_a_stage_s_margin_reaches_its_reward(completion, group):
    stage = StageConfig.model_validate(
        {
            "name": "cool",
            "steps": 1,
            "rewards": [{"kind": "within", "name": "in_time", "margin": 2}, {"kind": "within"}],
        }
    )
    scored = build_rewards(stage, LengthConfig(target=64, tolerance=5)).score(
        [group(completion(59), completion(61))]
    )
    np.testing.assert_array_equal(scored.components["in_time"], [[0, 1]])
    np.testing.assert_array_equal(scored.components["within"], [[1, 1]])
    with pytest.raises(ValidationError, match="`margin` is for kind `within`; reward 'length' is 'length'"):
        RewardConfig.model_validate({"kind": "length", "margin": 2})


def test_each_prompt_s_own_length_counts(completion, group):
    lengths = [24, 28, 44, 48, 51, 52]
    groups = [
        group(*map(completion, lengths), target=24),
        group(*map(completion, lengths), target=48),
        group(*map(completion, lengths)),
    ]
    asked = LengthConfig(target=64, targets=(24, 48), tolerance=3, tolerance_share=0.08)
    np.testing.assert_allclose(
        LengthReward("length", asked.target)(groups),
        [
            [0, -4 / 24, -20 / 24, -1, -1, -1],
            [-0.5, -20 / 48, -4 / 48, 0, -3 / 48, -4 / 48],
            [-40 / 64, -36 / 64, -20 / 64, -16 / 64, -13 / 64, -12 / 64],
        ],
    )
    within_PG = WithinReward("within", asked)(groups)
    np.testing.assert_array_equal(within_PG, [[1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0], [0] * 6])


def test_groups_of_different_sizes_and_none_at_all_are_refused(completion, group):
    reward = LengthReward("length", 64)
    with pytest.raises(ValueError, match=r"2 groups of sizes \[1, 2\]"):
        reward([group(completion(1)), group(completion(1), completion(2))])
    with pytest.raises(ValueError, match="0 groups"):
        reward([])

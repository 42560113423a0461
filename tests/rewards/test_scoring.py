"""Weights, gates and missing rewards, by hand on two prompts of two completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from mlx_sumrl.config import GateConfig, LengthConfig, StageConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.rewards import RewardSet, build_rewards
from mlx_sumrl.rollouts.types import Group

NAN = np.nan


@dataclass
class Fixed:
    """A reward that says what it is told to."""

    name: str
    values: list[list[float]]

    def __call__(self, groups: Sequence[Group]) -> np.ndarray:
        return np.array(self.values)


@pytest.fixture
def groups(completion, group):
    return [group(completion(1), completion(2)), group(completion(3), completion(4))]


def test_weighted_sum(groups):
    rewards = RewardSet(
        (Fixed("a", [[1, 2], [3, 4]]), Fixed("b", [[10, 20], [30, 40]]), Fixed("logged", [[7, 7], [7, 7]])),
        (2.0, -0.5, 0.0),
        (None, None, None),
    )
    scores = rewards.score(groups)
    assert scores.names == ("a", "b", "logged")
    np.testing.assert_array_equal(scores.total_PG, [[2 - 5, 4 - 10], [6 - 15, 8 - 20]])
    np.testing.assert_array_equal(scores.weighted_PGR[1, 0], [6, -15, 0])
    np.testing.assert_array_equal(scores.gated_PGR[1, 0], [3, 30, 7])
    np.testing.assert_array_equal(scores.weights_R, [2, -0.5, 0])
    assert scores.means() == {"a": 2.5, "b": 25.0, "logged": 7.0}
    assert all(array.dtype == np.float64 for array in (*scores.components.values(), scores.total_PG))


def test_a_gate_counts_from_at_least_and_the_raw_value_is_still_there(groups):
    rewards = RewardSet(
        (Fixed("quality", [[0.3, 0.4], [0.5, 0.6]]), Fixed("within", [[0.0, 0.9], [1.0, 2.0]])),
        (10.0, 1.0),
        (GateConfig(reward="within", at_least=1.0, otherwise=-0.2), None),
    )
    scores = rewards.score(groups)
    np.testing.assert_array_equal(scores.components["quality"], [[0.3, 0.4], [0.5, 0.6]])
    np.testing.assert_array_equal(scores.gated_PGR[..., 0], [[-0.2, -0.2], [0.5, 0.6]])
    np.testing.assert_allclose(scores.total_PG, [[-2.0, -1.1], [6.0, 8.0]])
    assert scores.means()["quality"] == pytest.approx(0.45)


def test_gates_look_at_raw_values_not_at_gated_or_weighted_ones(groups):
    # c is gated by b, and b by a: where a shuts b, b is worth 0 but its raw 1 still opens c.
    rewards = RewardSet(
        (Fixed("a", [[0, 1], [0, 1]]), Fixed("b", [[1, 1], [0, 0]]), Fixed("c", [[5, 5], [5, 5]])),
        (0.0, 0.0, 1.0),
        (None, GateConfig(reward="a"), GateConfig(reward="b")),
    )
    np.testing.assert_array_equal(rewards.score(groups).total_PG, [[5, 5], [0, 0]])


def test_missing_rewards(groups):
    rewards = RewardSet(
        (Fixed("a", [[1, NAN], [3, NAN]]), Fixed("b", [[NAN, 0], [2, NAN]])),
        (1.0, 1.0),
        (GateConfig(reward="b", at_least=1.0, otherwise=-1.0), None),
    )
    scores = rewards.score(groups)
    # [0,0]: b is missing, so a's gate is shut. [0,1]: a is missing and stays out, gate or no gate.
    # [1,0]: both count. [1,1]: nothing was said at all.
    np.testing.assert_array_equal(scores.total_PG, [[-1, 0], [3 + 2, 0]])
    np.testing.assert_array_equal(scores.weighted_PGR[0], [[-1, NAN], [NAN, 0]])
    assert scores.unscored == 1
    assert scores.means() == {"a": 2.0, "b": 1.0}


def test_a_reward_that_is_always_missing_has_no_mean(groups):
    scores = RewardSet((Fixed("a", [[NAN, NAN], [NAN, NAN]]),), (1.0,), (None,)).score(groups)
    assert scores.means() == {"a": None}
    assert scores.unscored == 4
    np.testing.assert_array_equal(scores.total_PG, np.zeros((2, 2)))


def test_wrong_shapes_are_refused(completion, group, groups):
    rewards = RewardSet((Fixed("flat", [[1, 2, 3, 4]]),), (1.0,), (None,))
    with pytest.raises(ValueError, match=r"'flat' gave an array of shape \(1, 4\), not \(2, 2\)"):
        rewards.score(groups)
    with pytest.raises(ValueError, match=r"sizes \[1, 2\]"):
        rewards.score([*groups, group(completion(1))])


def test_a_stage_as_it_is_configured(tmp_path, completion, group):
    path = tmp_path / "mine.py"
    path.write_text("def shouting(completions, **kwargs):\n    return [c.isupper() for c in completions]\n")
    stage = StageConfig.model_validate(
        {
            "name": "quality",
            "steps": 1,
            "rewards": [
                {"kind": "length", "weight": 0.5},
                {"kind": "within", "weight": 0},
                {"kind": "rougeL", "weight": 2, "gate": {"reward": "within"}},
                {"kind": "function", "function": f"{path}:shouting", "weight": -1},
            ],
        }
    )
    rewards = build_rewards(stage, LengthConfig(target=4, tolerance=1))
    scores = rewards.score(
        [
            group(
                completion(5, text="red blue"),  # within, one off
                completion(4, text="RED"),  # exact, shouted
                completion(4, "length", text="red"),  # cut
                completion(2, text="red"),  # too short: its overlap does not count
                reference="red",
            )
        ]
    )
    assert rewards.names == ("length", "within", "rougeL", "shouting")
    np.testing.assert_allclose(scores.components["rougeL"], [[2 / 3, 1, 1, 1]])
    np.testing.assert_array_equal(scores.components["within"], [[1, 1, 0, 0]])
    np.testing.assert_allclose(
        scores.total_PG,
        [[0.5 * -0.25 + 2 * 2 / 3, 0 + 2 - 1, 0.5 * -1, 0.5 * -0.5]],
    )


def test_a_stage_with_a_missing_function_fails_when_it_is_built():
    stage = StageConfig.model_validate(
        {"name": "s", "steps": 1, "rewards": [{"kind": "function", "function": "no_such_module:f"}]}
    )
    with pytest.raises(UserError, match="no_such_module:f"):
        build_rewards(stage, LengthConfig())

"""The language reward, by hand, as a gate and by weight."""
# ruff: noqa: RUF001 - other scripts are what is tested

from __future__ import annotations

import numpy as np

from mlx_sumrl.config import LengthConfig, StageConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.rewards import LanguageReward, build_rewards
from mlx_sumrl.rollouts.types import Group

CHINESE = "今年的经济增长超过了去年，许多分析师对此感到意外，他们认为出口的恢复是主要原因。"
ENGLISH = "The economy grew faster than in the year before, which surprised many analysts."


def groups(completion) -> list[Group]:
    texts = ["经济增长超预期", "The economy grew.", "...", ""]
    answers = tuple(completion(4, text=text) for text in texts)
    return [Group(Example("r", (1,), "p", document, "经济增长"), answers) for document in (CHINESE, ENGLISH)]


def test_one_where_the_language_is_kept(completion):
    language_PG = LanguageReward("language")(groups(completion))
    np.testing.assert_array_equal(language_PG, [[1, 0, 0, 0], [0, 1, 0, 0]])
    assert language_PG.dtype == np.float64


def test_as_a_gate_and_by_weight(completion):
    stage = StageConfig.model_validate(
        {
            "name": "s",
            "steps": 1,
            "rewards": [
                {"kind": "language", "weight": 0.5},
                {"kind": "rougeL", "gate": {"reward": "language"}},
            ],
        }
    )
    scores = build_rewards(stage, LengthConfig()).score(groups(completion))
    # 经济增长 is 4 of 7 characters: F1 = 8 / 11. In the English group only the language pays.
    np.testing.assert_allclose(scores.total_PG, [[0.5 + 8 / 11, 0, 0, 0], [0, 0.5, 0, 0]])
    assert scores.means()["language"] == 0.25

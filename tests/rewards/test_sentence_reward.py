"""A reward for whole sentences, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_sumrl.config import LengthConfig, StageConfig
from mlx_sumrl.rewards.scoring import build_rewards


@pytest.mark.parametrize(
    ("text", "reason", "expected"),
    [
        ("Ben is late.", "stop", 1),
        ('Ben says: "I am late."  ', "stop", 1),
        ("他来晚了。", "stop", 1),
        ("बेन देर से आया।", "stop", 1),
        ("بین دیر سے آیا۔", "stop", 1),  # noqa: RUF001
        ("هل تأخر بن؟", "stop", 1),
        ("Ben is", "stop", 0),
        ("Ben is late. Anna", "stop", 0),
        ("", "stop", 0),
        ("Is Ben late?!", "stop", 1),
        ("Ben is late...", "stop", 1),
        ("Ben is late!!!!!!!!!!", "stop", 0),
        ('Ben is "late ! ! ! !"', "stop", 0),
        ("Ben agrees...... Anna agrees.", "stop", 0),
        ("Ben agrees. . Anna agrees.", "stop", 0),
        ("At 3.5 p.m. Ben says: 'Late!' Anna agrees.", "stop", 1),
        ("Ben is late.", "length", 0),  # cut there: it might have gone on
    ],
)
def test_whole_sentences_that_ended_by_themselves(completion, group, text, reason, expected):
    stage = StageConfig.model_validate({"name": "s", "steps": 1, "rewards": [{"kind": "ends_sentence"}]})
    [reward] = build_rewards(stage, LengthConfig()).rewards
    assert reward.name == "ends_sentence"
    np.testing.assert_array_equal(reward([group(completion(3, reason, text))]), [[expected]])

"""Bullets and JSON by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mlx_sumrl.config import LengthConfig, RewardConfig, StageConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.rewards import BulletsReward, build_rewards


def stage(*rewards):
    return StageConfig.model_validate({"name": "s", "steps": 1, "rewards": list(rewards)})


def test_bullets_by_hand(completion, group):
    three = "- one two\n- three four\n\n- five six"
    texts = {
        three: 1.0,
        "1. one\n2. two\n3. three": 1.0,
        "- one\n- two": 2 / 3,  # of three
        "- one\n- two\n- three\n- four": 2 / 3,  # one too many
        "- a\n" * 7: 0.0,  # more than twice as many
        f"Here they are:\n{three}": 3 / 4,  # of four lines with text, three are bullets
        "- one two three four\n- two\n- three": (0.5 + 1 + 1) / 3,  # of four words two are too many
        "- one two three four\n- two\nand so on": 2 / 3 * 2 / 3 * (0.5 + 1) / 2,  # all of it, worse
        "one two three": 0.0,
        "": 0.0,
    }
    scores = BulletsReward("form", 3, 2)([group(*(completion(3, text=text) for text in texts))])
    np.testing.assert_allclose(scores[0], list(texts.values()))
    assert BulletsReward("form", 3, 2)([group(completion(3, "length", text=three))]) == 0.0, "it was cut"
    long = "- one two three four\n- two\n- three"
    assert BulletsReward("form", 3, None)([group(completion(3, text=long))]) == 1.0


def test_five_bullets_of_twenty_words_as_configured(completion, group):
    rewards = build_rewards(
        stage({"kind": "format_bullets", "bullets": 5, "max_words": 20, "name": "form"}), LengthConfig()
    )
    met = "\n".join(f"- {' '.join(['word'] * 20)}" for _ in range(5))
    over = met.replace("- ", "- one ", 1)
    scores = rewards.score([group(completion(9, text=met), completion(9, text=over))])
    assert scores.components["form"].tolist() == [[1.0, pytest.approx((4 + 20 / 21) / 5)]]


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
MODEL = """
from pydantic import BaseModel, field_validator

class Even(BaseModel):
    n: int

    @field_validator("n")
    @classmethod
    def even(cls, n: int) -> int:
        assert n % 2 == 0
        return n
"""


def test_json_of_a_schema_file_and_of_a_model(completion, group, tmp_path):
    (tmp_path / "n.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "even.py").write_text(MODEL)
    rewards = build_rewards(
        stage(
            {"kind": "json_schema", "schema_file": str(tmp_path / "n.json"), "name": "file"},
            {"kind": "json_schema", "schema_file": f"{tmp_path / 'even.py'}:Even", "name": "model"},
        ),
        LengthConfig(),
    )
    texts = ['{"n": 2}', ' {"n": 3}\n', '{"n": "2"}', '{"n": 2} ok', '{"n": 2', "[2]", "", '{"n": NaN}']
    scores = rewards.score([group(*(completion(3, text=text) for text in texts))])
    assert scores.components["file"].tolist() == [[1, 1, 0, 0, 0, 0, 0, 0]]
    assert scores.components["model"].tolist() == [[1, 0, 0, 0, 0, 0, 0, 0]]
    with pytest.raises(UserError, match=r"nowhere\.json"):
        build_rewards(stage({"kind": "json_schema", "schema_file": "nowhere.json"}), LengthConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "format_bullets"}, "`bullets: 5` exactly when its kind is `format_bullets`"),
        ({"kind": "length", "bullets": 5}, "`bullets: 5` exactly when"),
        ({"kind": "length", "max_words": 5}, "`max_words` is for kind `format_bullets`"),
        ({"kind": "json_schema"}, "`schema_file: schema.json` exactly when"),
        ({"kind": "rougeL", "schema_file": "x.json"}, "`schema_file: schema.json` exactly when"),
        ({"kind": "rougeL", "timeout_s": 0}, "greater than 0"),
    ],
)
def test_options_that_do_not_belong_together(options, message):
    with pytest.raises(ValueError, match=message):
        RewardConfig.model_validate(options)

"""The length rewards in words, characters and bullets, by hand; and Chinese rows in tokens and characters."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer

from mlx_sumrl.config import LengthConfig, RunConfig, StageConfig
from mlx_sumrl.rewards import LengthReward, WithinReward, build_rewards, length_in, length_reward
from mlx_sumrl.rollouts.types import Completion


@pytest.mark.parametrize(
    ("text", "unit", "length"),
    [
        ("one two  three", "words", 3),
        ("one two  three", "characters", 13),
        ("- one\n- two", "bullets", 2),
        ("one two", "tokens", 9),
    ],
)
def test_what_is_measured(completion, text, unit, length):
    assert length_in(completion(9, text=text), unit) == length


def test_rewards_are_those_of_tokens_with_another_count(completion, group):
    groups = [
        group(
            completion(50, text="one two three four"),
            completion(4, text="one two"),
            completion(1, text=" ".join(["word"] * 9)),
            completion(4, "length", text="one two three four"),
            completion(4, text=""),
        )
    ]
    np.testing.assert_array_equal(LengthReward("length", 4, "words")(groups), [[0, -0.5, -1, -1, -1]])
    length = LengthConfig(target=4, tolerance=2, unit="words")
    np.testing.assert_array_equal(WithinReward("within", length)(groups), [[1, 1, 0, 0, 0]])
    stage = StageConfig.model_validate(
        {"name": "s", "steps": 1, "rewards": [{"kind": "length"}, {"kind": "within"}]}
    )
    scores = build_rewards(stage, length).score(groups)
    np.testing.assert_array_equal(scores.total_PG, [[1, 0.5, -1, -1, -1]])


def test_an_unfinished_one_is_lowest_in_every_unit(completion):
    for unit in ("words", "characters", "bullets"):
        assert length_reward(completion(2, "length", text="- ok"), 1, unit) == -1.0


def test_chinese_rows_in_tokens_and_characters(chinese):
    folder = Path(__file__).parents[2].parent / "shared" / "models" / "summarizer-5m"
    if not folder.is_dir():
        pytest.skip("needs summarizer-5m in the shared folder beside the checkout")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    for row in chinese:
        text = row["summary"]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        one = Completion((*ids, 2), (0.0,) * (len(ids) + 1), "stop", 0, text)
        assert length_in(one, "tokens") == len(tokenizer.tokenize(text)) > len(text)
        characters = len(unicodedata.normalize("NFC", text))
        assert length_in(one, "characters") == characters
        assert length_reward(one, characters, "characters") == 0.0
        assert length_reward(one, 2 * characters, "characters") == -0.5


def test_an_empty_summary_can_never_be_within():
    with pytest.raises(ValidationError, match=r"length.tolerance 5 is not below length.target 3 \(bullets\)"):
        LengthConfig(target=3, unit="bullets")
    assert str(LengthConfig(target=3, tolerance=1, unit="bullets")) == "3 ± 1 bullets"
    assert str(LengthConfig()) == "64 ± 5"


def test_what_fits_into_max_tokens_is_known_of_tokens_alone():
    run = {"policy": {"model": "m"}, "sampling": {"max_tokens": 96}}
    with pytest.raises(ValidationError, match="can never be reached"):
        RunConfig.model_validate({**run, "length": {"target": 200}})
    assert RunConfig.model_validate({**run, "length": {"target": 200, "unit": "characters"}})
    with pytest.raises(ValidationError, match="length_matched_baseline counts tokens"):
        RunConfig.model_validate(
            {**run, "length": {"unit": "words"}, "evaluation": {"length_matched_baseline": True}}
        )

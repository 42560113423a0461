"""Repeated n-grams, counted by hand."""

from __future__ import annotations

import pytest

from mlx_sumrl.config import LengthConfig, StageConfig
from mlx_sumrl.metrics.repetition import repeated_share
from mlx_sumrl.rewards.repetition import RepetitionReward
from mlx_sumrl.rewards.scoring import build_rewards
from mlx_sumrl.rollouts.types import Completion


@pytest.mark.parametrize(
    ("ids", "ngram", "share"),
    [
        ([], 2, 0.0),
        ([7], 2, 0.0),
        ([7, 7], 2, 0.0),  # one bigram
        ([7, 7, 7], 2, 1 / 2),  # 77 77
        ([1, 2, 3, 4, 5], 2, 0.0),
        ([1, 2, 1, 2, 1], 2, 2 / 4),  # 12 21 12 21
        ([1, 2, 3, 1, 2, 3], 3, 1 / 4),  # 123 231 312 123
        ([5, 5, 5, 5, 5, 5], 1, 5 / 6),
    ],
)
def test_share_of_ngrams_that_stood_there_before(ids: list[int], ngram: int, share: float) -> None:
    assert repeated_share(ids, ngram) == pytest.approx(share)


def test_reward_is_minus_the_share_and_the_stop_token_is_no_part_of_it(group) -> None:
    stopped = Completion((1, 2, 1, 2, 2), (0.0,) * 5, "stop", 0, "")  # 1 2 1 2 and the stop token 2
    cut = Completion((1, 2, 1, 2, 2), (0.0,) * 5, "length", 0, "")
    values = RepetitionReward("repetition", 2)([group(stopped, cut)])
    assert values[0].tolist() == pytest.approx([-1 / 3, -1 / 4])  # 12 21 12 | 12 21 12 22


def test_of_words_a_name_of_several_tokens_is_one(group) -> None:
    """``#Person1#`` is said twice; of its words only ``ann agrees`` stands there twice."""
    text = "#Person1# calls #Person1#'s boss. Ann agrees. Ann agrees."
    name, rest = (1, 2, 3, 4), (20, 21, 22, 30, 31, 22, 30, 31, 22, 9)
    said = Completion((*name, 10, *name, *rest), (0.0,) * 19, "stop", 0, text)
    values = RepetitionReward("repetition", 4)([group(said)])
    # 18 tokens, 15 4-grams: 1 2 3 4 and 22 30 31 22 (". Ann agrees.") stand there twice.
    assert values[0].tolist() == pytest.approx([-2 / 15])
    # person1 calls person1 s boss ann agrees ann agrees: 8 pairs, one of them twice
    values = RepetitionReward("repetition", 2, "words")([group(said)])
    assert values[0].tolist() == pytest.approx([-1 / 8])


def test_a_stage_builds_it_with_its_own_ngram(group) -> None:
    stage = StageConfig.model_validate(
        {"name": "s", "steps": 1, "rewards": [{"kind": "repetition", "ngram": 1, "weight": 2.0}]}
    )
    completions = Completion((3, 3, 3, 9), (0.0,) * 4, "stop", 0, "")
    scores = build_rewards(stage, LengthConfig()).score([group(completions, completions)])
    assert scores.total_PG[0].tolist() == pytest.approx([-4 / 3, -4 / 3])

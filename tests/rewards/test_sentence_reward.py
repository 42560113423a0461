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


@pytest.mark.parametrize(
    ("text", "reason", "expected"),
    [
        ("Ben is very late.", "stop", 1),
        ("Ben is very late. Anna agrees with", "stop", 0),
        ("Ben is very late. Anna agrees.", "stop", 0),  # two words are a fragment
        ("Ben is very late. Anna agrees.", "length", 0),
        ("Ben is very late. Anna agrees with him...... He left.", "stop", 0),
        ("Ben is very late.!!!!!!!!", "stop", 0),
        ("", "stop", 0),
        ("...", "stop", 0),
        # Fragments with dots between them are one sentence, and broken.
        ("Ben is late. the new bus. it is.", "stop", 0),
        ("Anna is not late today. Ben is late. the new bus.", "stop", 0),
        ("Is Ben late? the bus is late too.", "stop", 0),
        # Small letters that go on after what is no end.
        ("Ben, i.e. the boy, was late, e.g. for the bus.", "stop", 1),
        ("Ben works for Apple Inc. in the city.", "stop", 1),
        ("Ben came at 9 a.m. on the bus.", "stop", 1),
        ("Ben waited… then he went home.", "stop", 1),
        ('"Are you late?" she asked Ben.', "stop", 1),
        ("1. ben is late today.", "stop", 1),
        ("ben is very late today.", "stop", 1),  # a text may begin with one
        ("本来晚了。安娜走了。", "stop", 1),  # characters are words
        ("बेन आज देर से आया।", "stop", 1),
        ("बेन आज देर से आया। वह है।", "stop", 0),  # each is judged
        ("هل؟ هو؟ هي؟ نعم؟", "stop", 0),
        ("他很好。", "stop", 0),  # three
        # What is quoted belongs to who says it; a mark that closes nothing does not.
        ('"Are you late?" Anna asked Ben.', "stop", 1),
        ("“好。”他对安娜说。", "stop", 1),
        ('We show it all." the method." it is." the.', "stop", 0),
        ("The method is good now.\nof the proposed method is.", "stop", 0),
        ("Ben waited... then he went home.", "stop", 1),
        ("Is Ben late today?! He is not late.", "stop", 1),
        ("Ben is very late. . Anna is very late.", "stop", 0),
        ("Ben is very late.. Anna is very late.", "stop", 0),
    ],
)
def test_every_sentence_is_whole(completion, group, text, reason, expected):
    stage = StageConfig.model_validate({"name": "s", "steps": 1, "rewards": [{"kind": "whole_sentences"}]})
    [reward] = build_rewards(stage, LengthConfig()).rewards
    assert reward.name == "whole_sentences"
    np.testing.assert_allclose(reward([group(completion(3, reason, text))]), [[expected]])


def test_how_many_words_a_sentence_has_is_an_option(completion, group):
    options = {"kind": "whole_sentences", "min_words": 2}
    stage = StageConfig.model_validate({"name": "s", "steps": 1, "rewards": [options]})
    [reward] = build_rewards(stage, LengthConfig()).rewards
    texts = ["Ben is very late. Anna agrees.", "Ben is very late. Yes."]
    scored = reward([group(*(completion(3, "stop", text) for text in texts))])
    np.testing.assert_allclose(scored, [[1, 0]])


def test_a_number_of_words_for_another_kind_is_refused():
    with pytest.raises(
        ValueError, match="`min_words` is for kind `whole_sentences`; reward 'length' is 'length'"
    ):
        StageConfig.model_validate({"name": "s", "steps": 1, "rewards": [{"kind": "length", "min_words": 2}]})

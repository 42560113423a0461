"""The curriculum that the recipes bring along: options of a run as plain values, laid under those of the user.

What stands here won the study of ``docs/study.md`` (`constrained` in ``recipes/configs/study.yaml``; a test holds that
both are the same): quality and a price for repeats throughout, and the share within the asked length kept at a level
by a weight that adapts. It has one stage, so `recipes.grpo_staged` and `recipes.grpo_joint` begin from the same.

Repetition is paid for. Without it both rewards are won by text that no one wants: the length by dots and loops, and
then ROUGE, which sees no punctuation, by the words most often matched (seen on DialogSum: ROUGE-L rose to 1.15 times
the length-matched baseline's while METEOR fell to 0.79 of it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_sumrl.config import StageConfig
from mlx_sumrl.metrics.meteor import wordnet_is_there, wordnet_problem

Options = dict[str, Any]

CURRICULUM: Options = {
    "sampling": {"temperature": 0.7},
    "optimizer": {"schedule": "linear", "final_share": 0.1, "warmup_steps": 5},
    "grpo": {"beta": 0.02},
    "stages": [
        {
            "name": "constrained",
            "steps": 120,
            "rewards": [
                {"kind": "length"},
                {"kind": "repetition", "ngram": 2, "ngram_of": "words", "weight": 2.0},
                {"kind": "within"},
                # Half as much again as METEOR, which varies nearly twice as much within a group.
                {"kind": "rougeL", "weight": 3.0},
                {"kind": "meteor", "weight": 2.0},  # the last, since there may be no WordNet
            ],
            "constraint": {"reward": "within", "at_least": 0.95},
        }
    ],
}


def laid_under(given: Mapping[str, Any]) -> Options:
    """What lies under the options that a user has ``given``.

    The curriculum where they have no stages, and nothing where they have: its temperature, schedule and KL were made
    for its own stages. Where there is no WordNet, METEOR's weight goes to ROUGE-L.
    """
    if given.get("stages") is not None:
        return {}
    own = {**CURRICULUM, "stages": _stages(wordnet_is_there())}
    if "warmup_ratio" in (given.get("optimizer") or {}):
        own["optimizer"] = {name: value for name, value in own["optimizer"].items() if name != "warmup_steps"}
    return own


def what_is_left_out(stages: Sequence[StageConfig]) -> str | None:
    """A sentence where ``stages`` are what `laid_under` has left of the curriculum for want of WordNet."""
    if wordnet_is_there():
        return None
    left = [StageConfig.model_validate(stage) for stage in _stages(with_meteor=False)]
    if list(map(_paid, stages)) != list(map(_paid, left)):
        return None
    return f"quality is ROUGE-L alone, METEOR is not paid for: {wordnet_problem()}"


def _paid(stage: StageConfig) -> tuple[str, ...]:
    return (stage.name, *(reward.label for reward in stage.rewards))


def _stages(with_meteor: bool) -> list[Options]:
    stages: list[Options] = CURRICULUM["stages"]
    if with_meteor:
        return stages
    left = []
    for stage in stages:
        freed = sum(reward["weight"] for reward in stage["rewards"] if reward["kind"] == "meteor")
        rewards = [
            {**reward, "weight": reward["weight"] + freed} if reward["kind"] == "rougeL" else reward
            for reward in stage["rewards"]
            if reward["kind"] != "meteor"
        ]
        left.append({**stage, "rewards": rewards})
    return left

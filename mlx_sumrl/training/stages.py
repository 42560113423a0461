"""The curriculum that the recipes bring along: options of a run as plain values, laid under those of the user.

What stands here won the study of ``docs/study.md`` (`decoupled` in ``recipes/configs/study.yaml``; a test holds
that both are the same): the length and quality from the first step, each reward normalised within its group by itself,
so that quality is not drowned by the length, which varies most until it is met; then when to stop, which is taught and
not paid for; then near temperature 0, where greedy decoding's loops are: the length pays for when to stop, quality and
a price on word pairs said again for what is said, whole sentences and being in time for both.

`constrained` is what won among the others, in one stage and from rewards alone: quality, a price for repeats, and the
share within the asked length kept at a level by a weight that adapts. It is what `recipes.grpo_joint` brings, and takes
the other's place where when to stop is not taught. No stage of either is without the length or without quality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_sumrl.config import DEFAULT_LENGTH_UNIT, StageConfig
from mlx_sumrl.metrics.meteor import wordnet_is_there, wordnet_problem

Options = dict[str, Any]

CURRICULUM: Options = {
    "sampling": {"temperature": 0.7},
    "optimizer": {"schedule": "linear", "final_share": 0.1, "warmup_steps": 5},
    "grpo": {"beta": 0.02, "normalize_rewards": "each"},
    "stages": [
        {
            "name": "joint",
            "steps": 80,
            "rewards": [
                {"kind": "length"},
                {"kind": "rougeL", "weight": 1.0},
                {"kind": "meteor", "weight": 1.0},  # the last, since there may be no WordNet
            ],
        },
        {
            "name": "cool",
            "steps": 40,
            "temperature": 0.3,
            "learning_rate_share": 0.5,
            "reference": "fresh",
            "rewards": [
                {"kind": "length", "credit": "stop"},
                {"kind": "within", "credit": "stop", "margin": 2},
                {"kind": "within", "name": "in_time", "credit": "content", "margin": 2},
                {"kind": "whole_sentences", "credit": "content", "weight": 2.0},
                {
                    "kind": "whole_sentences",
                    "name": "whole_in_time",
                    "credit": "stop",
                    "gate": {"reward": "within"},
                },
                {"kind": "repetition", "ngram": 2, "ngram_of": "words", "credit": "content"},
                {"kind": "rougeL", "credit": "content", "weight": 3.0},
                {"kind": "meteor", "credit": "content", "weight": 2.0},
            ],
        },
    ],
    "stopping": {"steps": 100, "short_share": 0.4, "when": "before", "stage": "cool"},
}
CONSTRAINED: Options = {
    "sampling": CURRICULUM["sampling"],
    "optimizer": CURRICULUM["optimizer"],
    "grpo": {"beta": 0.02},
    "stages": [
        {
            "name": "constrained",
            "steps": 120,
            "rewards": [
                {"kind": "length"},
                {"kind": "repetition", "ngram": 2, "ngram_of": "words", "weight": 2.0},
                {"kind": "within"},
                # Summed with METEOR, which varies nearly twice as much within a group: half as much again.
                {"kind": "rougeL", "weight": 3.0},
                {"kind": "meteor", "weight": 2.0},
            ],
            "constraint": {"reward": "within", "at_least": 0.95},
        }
    ],
}
"""In one stage, length and quality together; what takes its place where when to stop is not taught."""


def laid_under(given: Mapping[str, Any], *, staged: bool = True) -> Options:
    """What lies under the options that a user has ``given``; not ``staged`` is `CONSTRAINED`.

    The curriculum where they have no stages, and nothing where they have: its temperature, schedule and KL were made
    for its own stages. Where there is no WordNet, METEOR's weight goes to ROUGE-L.

    When to stop is taught where that can be: one length for all, in tokens, counted from the first (a number that is
    told takes hundreds of steps more); and to adapters, since the small steps that full tuning takes by default would
    not teach it in any time worth waiting for, unless a room ``stopping`` asks for it; and where every token may be
    drawn, so that a reward can pay for stopping alone; and where each reward is normalised by itself, since their
    weights are shares. Elsewhere, and where ``stopping`` is given as null, it is `CONSTRAINED`.
    """
    if given.get("stages") is not None:
        return {}
    own = CURRICULUM if staged and _why_not_taught(given) is None else CONSTRAINED
    own = {**own, "stages": _payable(own["stages"], wordnet_is_there())}
    if "warmup_ratio" in _room(given, "optimizer"):
        own["optimizer"] = {name: value for name, value in own["optimizer"].items() if name != "warmup_steps"}
    return own


def _room(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Options of a room; none where it is no room at all, which validation says better."""
    room = given.get(name)
    return room if isinstance(room, Mapping) else {}


def why_not_taught(given: Mapping[str, Any]) -> str | None:
    """A sentence where `laid_under` brings `CONSTRAINED`, which names the option that it is for."""
    reason = _why_not_taught(given) if given.get("stages") is None else None
    if reason is None:
        return None
    name = CONSTRAINED["stages"][0]["name"]
    apart = isinstance(given.get("stopping"), Mapping)  # taught all the same, beside a stage not made for it
    untaught = "" if apart else ", in which when to stop is not taught"
    return f"the recipe's own stage is {name!r} here{untaught}, since {reason}"


def _why_not_taught(given: Mapping[str, Any]) -> str | None:
    """What stands against `CURRICULUM`. Values from a command line may be text still."""

    def other(room: str, name: str, value: str | float) -> str | None:
        found = _room(given, room).get(name, value)
        try:
            same = found == value if isinstance(value, str) else float(found) == value
        except (TypeError, ValueError):  # validation will say
            same = True
        return None if same else f"{room}.{name} is {found}"

    after = _room(given, "answer").get("after")
    full = _room(given, "policy").get("tuning") == "full" and not isinstance(given.get("stopping"), Mapping)
    reasons = (
        "stopping is null" if "stopping" in given and given["stopping"] is None else None,
        "length.targets asks for several lengths" if _room(given, "length").get("targets") else None,
        other("length", "unit", DEFAULT_LENGTH_UNIT),
        f"answer.after is {after!r}" if after else None,
        "policy.tuning is full" if full else None,
        other("sampling", "top_p", 1.0),
        other("sampling", "top_k", 0.0),
        other("grpo", "normalize_rewards", "each"),
        other("grpo", "scale_advantages", "group"),
        "grpo.loss is dr_grpo" if _room(given, "grpo").get("loss") == "dr_grpo" else None,
    )
    return next((reason for reason in reasons if reason), None)


def what_is_left_out(stages: Sequence[StageConfig]) -> str | None:
    """A sentence where ``stages`` are what `laid_under` has left of its own for want of WordNet."""
    if wordnet_is_there():
        return None
    for own in (CURRICULUM, CONSTRAINED):
        left = [StageConfig.model_validate(stage) for stage in _payable(own["stages"], with_meteor=False)]
        if list(map(_paid, stages)) == list(map(_paid, left)):
            return f"quality is ROUGE-L alone, METEOR is not paid for: {wordnet_problem()}"
    return None


def _paid(stage: StageConfig) -> tuple[str, ...]:
    return (stage.name, *(reward.label for reward in stage.rewards))


def _payable(stages: list[Options], with_meteor: bool) -> list[Options]:
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

"""``{kind: quality}`` in a method's stages -> the rewards of a set. Never imports mlx."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_sumrl.config import RewardConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.options.errors import shown
from mlx_sumrl.options.values import from_values

QUALITY = "quality"


def says_quality(options: Mapping[str, Any]) -> bool:
    """Whether a stage of these options, plain values as in a file, has a reward that stands for a set."""
    return any(_is_quality(reward) for stage in _stages(options) for reward in _listed(stage.get("rewards")))


def with_rewards(
    options: Mapping[str, Any], rewards: Sequence[Mapping[str, Any]], whose: str
) -> dict[str, Any]:
    """The options with ``rewards`` in each place that says quality; what is no stage or reward is left as it is.

    A reward's weight is its own times that of the place; the other keys of the place are put on each.

    Raises:
        UserError: a reward of the set is none, or the place gives a name, which several rewards cannot share.
    """
    labels = [
        from_values(RewardConfig, reward, f"{whose}, reward {place}").label
        for place, reward in enumerate(rewards)
    ]

    def expanded(item: Any) -> list[Any]:
        if not _is_quality(item):
            return [item]
        if "name" in item:
            raise UserError(
                f"{whose}: {shown(item)} gives one name to the rewards of a set: leave `name` out"
            )
        shared = {key: value for key, value in item.items() if key not in ("kind", "weight")}
        return [
            {**reward, **shared, "weight": _weight(reward, whose) * _weight(item, whose)}
            for reward in rewards
        ]

    stages: list[Any] = []
    for stage in _listed(options.get("stages")):
        if isinstance(stage, Mapping):
            held = dict(stage)
            if isinstance(held.get("rewards"), list | tuple):
                held["rewards"] = [one for item in held["rewards"] for one in expanded(item)]
            constraint = held.get("constraint")
            if isinstance(constraint, Mapping) and isinstance(constraint.get("scales"), list | tuple):
                scales = [
                    one for name in constraint["scales"] for one in (labels if name == QUALITY else [name])
                ]
                held["constraint"] = {**constraint, "scales": scales}
            stage = held
        stages.append(stage)
    return {**options, "stages": stages} if stages else dict(options)


def _is_quality(reward: Any) -> bool:
    return isinstance(reward, Mapping) and reward.get("kind") == QUALITY


def _weight(reward: Mapping[str, Any], whose: str) -> float:
    value = reward.get("weight", RewardConfig.model_fields["weight"].default)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(
            f"{whose}: weight is {shown(value)} in {shown(dict(reward))}: write a number"
        ) from None


def _stages(options: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [stage for stage in _listed(options.get("stages")) if isinstance(stage, Mapping)]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []

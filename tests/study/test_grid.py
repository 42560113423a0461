"""The grid of a study: which runs there are, in which order, with which options, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mlx_sumrl.config import StudyConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.options.tree import merged
from mlx_sumrl.study.budgets import Budget, allowed, made
from mlx_sumrl.study.grid import runs_of

LENGTH = {"kind": "length"}
GIVEN: dict[str, Any] = {
    "name": "grid",
    "runs_dir": "below",
    "options": {
        "name": "someone's",
        "seed": 9,
        "policy": {"model": "M"},
        "grpo": {"prompts_per_step": 3, "group_size": 4, "beta": 0.1},
        "data": {"train": "rows.jsonl", "evaluation": "held.jsonl", "evaluation_rows": 100},
        "export": {"fused": False},
    },
    "methods": {
        "length_only": {"stages": [{"name": "length", "steps": 10, "rewards": [LENGTH]}]},
        "gated": {
            "grpo": {"beta": 0},
            "stages": [
                {"name": "length", "steps": 4, "rewards": [LENGTH, {"kind": "quality", "weight": 0}]},
                {
                    "name": "quality",
                    "steps": 6,
                    "rewards": [
                        LENGTH,
                        {"kind": "within", "weight": 0},
                        {"kind": "quality", "weight": 3, "gate": {"reward": "within"}},
                    ],
                    "constraint": {"reward": "within", "scales": ["length", "quality"]},
                },
            ],
        },
    },
    "rewards": {
        "mine": [{"kind": "rougeL", "weight": 0.5}, {"kind": "rouge1", "name": "first"}],
        "yours": [{"kind": "repetition", "ngram": 2}],
    },
    "seeds": [4, 2],
    "evaluations": {"held": {}},
}


def study(changes: Mapping[str, Any] | None = None) -> StudyConfig:
    return StudyConfig.model_validate(merged(GIVEN, changes or {}))


def test_every_method_has_each_set_and_each_seed_in_turn() -> None:
    """A method that does not say quality would be the same run with each set: it is made once."""
    runs = runs_of(study())
    of_seed = ["length_only", "gated-mine", "gated-yours"]
    assert [run.name for run in runs] == [f"{line}-seed{seed}" for seed in (4, 2) for line in of_seed]
    assert [run.line for run in runs] == of_seed * 2
    assert [run.config.seed for run in runs] == [4] * 3 + [2] * 3
    assert runs[1].folder == Path("below/grid/runs/gated-mine-seed4")
    one, other = runs[1].config.model_dump(), runs[4].config.model_dump()
    assert {name for name in one if one[name] != other[name]} == {"name", "seed"}
    # With one set its name says nothing.
    single = {**GIVEN, "rewards": {"mine": GIVEN["rewards"]["mine"]}, "seeds": [0]}
    assert [run.name for run in runs_of(StudyConfig.model_validate(single))] == [
        "length_only-seed0",
        "gated-seed0",
    ]


def test_quality_becomes_the_rewards_of_the_set_with_weights_times_its_own() -> None:
    run = next(run for run in runs_of(study()) if run.line == "gated-mine")
    first, second = run.config.stages
    assert {one.label: one.weight for one in first.rewards} == {"length": 1, "rougeL": 0, "first": 0}
    rewards = {one.label: one for one in second.rewards}
    assert {name: one.weight for name, one in rewards.items()} == {
        "length": 1,
        "within": 0,
        "rougeL": 1.5,
        "first": 3,
    }
    assert [name for name, one in rewards.items() if one.gate] == ["rougeL", "first"]
    assert second.constraint is not None
    assert second.constraint.scales == ("length", "rougeL", "first")
    other = next(run for run in runs_of(study()) if run.line == "gated-yours").config.stages[1]
    assert [(one.label, one.weight, one.ngram) for one in other.rewards][2] == ("repetition", 3, 2)


def test_what_all_runs_have_and_what_the_study_gives() -> None:
    length_only, gated = (run.config for run in runs_of(study())[:2])
    assert (length_only.grpo.beta, gated.grpo.beta) == (0.1, 0)
    assert gated.grpo.group_size == 4
    assert gated.export.fused, "there has to be something to measure"
    assert not gated.report
    assert runs_of(study({"options": {"report": True}}))[0].config.report, "asked for"
    assert gated.data.evaluation_rows == study().own_rows
    assert gated.data.evaluation == "held.jsonl"


def test_budgets(tmp_path: Path) -> None:
    config = runs_of(study())[1].config
    assert allowed(config) == Budget(steps=10, rollouts=10 * 3 * 4)
    lines = ['{"step": 1, "stage": "sft", "tokens": 900}']
    lines += [f'{{"step": {n}, "stage": "length", "tokens": {n}.0}}' for n in (2, 3)]
    lines += ['{"step": 4, "stage": "quality", "tokens": 70.0}', '{"step": 5, "stage": "qua']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert made(config, tmp_path) == Budget(steps=3, rollouts=36, tokens=75, supervised_steps=1)
    assert made(config, tmp_path / "none") == Budget(0, 0, 0)


def test_unequal_budgets_are_refused() -> None:
    longer = {"methods": {"gated": {"grpo": {"group_size": 8}}}}
    with pytest.raises(UserError) as told:
        runs_of(study(longer))
    for word in (
        "length_only",
        "10 steps x 3 prompts x 4 completions = 120",
        "gated",
        "= 240",
        "unequal_budgets",
    ):
        assert word in str(told.value)
    assert len(runs_of(study(longer | {"unequal_budgets": True}))) == 6
    # Half the steps of twice the rollouts is as much.
    fair = {
        "stages": [{**GIVEN["methods"]["length_only"]["stages"][0], "steps": 5}],
        "grpo": {"group_size": 8},
    }
    assert len(runs_of(study({"methods": {"length_only": fair}}))) == 6


def stage(rewards: list[Any], **other: Any) -> dict[str, Any]:
    return {"methods": {"gated": {"stages": [{"name": "only", "steps": 10, "rewards": rewards, **other}]}}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"methods": {"gated": {"grpo": {"grop_size": 8}}}},
            ["method gated", "grpo.grop_size", "group_size"],
        ),
        (
            {"methods": {"gated": {"grpo": {"group_size": 0}}}},
            ["method gated, rewards mine", "grpo.group_size"],
        ),
        ({"rewards": {"yours": [{"kind": "rogueL"}]}}, ["rewards yours", "kind"]),
        ({"rewards": {"yours": [{"kind": "rougeL", "wieght": 2}]}}, ["rewards yours", "wieght", "weight"]),
        ({"rewards": {"yours": [LENGTH]}}, ["method gated", "rewards yours", "two rewards named 'length'"]),
        (stage([{"kind": "quality", "name": "q"}]), ["method gated", "one name"]),
        (stage([{"kind": "quality", "weight": "much"}]), ["method gated", "weight is 'much'"]),
        (stage([{"kind": "quality", "gate": {"reward": "within"}}]), ["method gated", "'within'"]),
        (stage([LENGTH], constraint={"reward": "within"}), ["method gated", "constraint", "'within'"]),
        ({"methods": {"gated": {"stages": []}}}, ["method gated", "stages are missing"]),
        ({"methods": {"gated": {"stages": "many"}}}, ["method gated", "stages"]),
        ({"options": {"policy": None}}, ["policy"]),
        ({"baselines": {"GATED-mine": {}}}, ["GATED-mine", "gated-mine", "rename"]),
        (
            {"methods": {"length_only-seed4": GIVEN["methods"]["length_only"]}},
            ["length_only-seed4", "rename"],
        ),
    ],
)
def test_what_is_wrong_is_named_with_method_rewards_and_option(
    changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as told:
        runs_of(study(changes))
    for word in words:
        assert word in str(told.value)


def test_quality_needs_rewards() -> None:
    with pytest.raises(UserError, match=r"methods.gated says `kind: quality` and there are no rewards"):
        runs_of(StudyConfig.model_validate({**GIVEN, "rewards": {}}))


def test_only_some_methods() -> None:
    every = runs_of(study())
    some = runs_of(study({"only": ["gated"]}))
    assert [run.name for run in some] == [run.name for run in every if run.method == "gated"]
    assert [run.options for run in some] == [run.options for run in every if run.method == "gated"]
    assert runs_of(study({"only": ["gated", "length_only"]})) == every, "in the order of methods"

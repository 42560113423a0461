"""What `recipes.study` says to mistakes: before a folder is made, in one sentence that names the thing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mlx_sumrl.config import PrepareConfig, StudyConfig
from mlx_sumrl.data.data_card import make_card
from mlx_sumrl.data.examples import config_rows
from mlx_sumrl.data.prepared import prepare
from mlx_sumrl.data.prepared_folder import write_prepared
from mlx_sumrl.options import tree
from mlx_sumrl.options.command_line import parse, parse_command
from mlx_sumrl.options.tree import merged
from recipes.evaluate import EvaluateConfig
from recipes.study_plan import Plan, planned

from .programs import ROOT, SHARED, Program, tiny_job, write_options


def options(tiny_model: Path, posts: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    shared = tiny_job({"policy": {"model": str(tiny_model)}})
    del shared["policy"]["tiny"], shared["data"]["grammar"], shared["sft"]
    shared["data"] |= {"train": str(posts), "evaluation": str(posts)}
    stage = {"name": "only", "steps": 2, "rewards": [{"kind": "length"}, {"kind": "quality"}]}
    given = {
        "options": shared,
        "methods": {"joint": {"stages": [stage]}},
        "rewards": {"overlap": [{"kind": "rougeL"}]},
        "evaluations": {"held": {}},
    }
    return dict(merged(given, changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"methods": {"joint": {"grpo": {"beta": "low"}}}},
            ["method joint, rewards overlap", "grpo.beta", "'low'"],
        ),
        (
            {"rewards": {"overlap": [{"kind": "function", "function": "no.py:f"}]}},
            ["method joint, stage only", "no.py"],
        ),
        ({"methods": {"a b": {}}}, ["methods.a b", "letters"]),
        ({"methods": {"joint": {"seed": 3}}}, ["methods.joint.seed", "study's"]),
        ({"seeds": [1, 1]}, ["seeds", "[1, 1]"]),
        ({"only": ["join"]}, ["only", "'join'", "joint"]),
        (
            {"evaluations": {"held": {"data": {"evaluation": "none.jsonl"}}}},
            ["evaluations.held", "none.jsonl"],
        ),
        ({"evaluations": {"held": {"data": {"document_column": "post"}}}}, ["evaluations.held", "'post'"]),
        (
            {"evaluations": {"held": {"temprature": 1}}},
            ["evaluations.held of joint", "temprature", "temperature"],
        ),
        ({"evaluations": {"held": {"samples": 3}}}, ["evaluations.held", "samples 3 at temperature 0"]),
        ({"evaluations": {"held": {"out": "x.json"}}}, ["evaluations.held", "out cannot be set"]),
        ({"evaluations": {"held": {"model": "M"}}}, ["evaluations.held", "model cannot be set"]),
        ({"options": {"data": {"train": "none.jsonl"}}}, ["method joint", "data.train", "none.jsonl"]),
        ({"options": {"data": {"train": None}}}, ["method joint", "data.train", "null"]),
        ({"options": {"policy": {"model": "./none"}}}, ["./none", "model folder"]),
        ({"untouched": "./none"}, ["untouched", "./none"]),
        ({"baseline": "both"}, ["baseline", "'both'", "joint"]),
        ({"at_once": 2, "cluster": "nodes.yaml"}, ["at_once 2", "cluster nodes.yaml"]),
        ({"cluster": "nodes.yaml"}, ["nodes.yaml", "does not exist"]),
        ({"baselines": {"drawn": {"force_lenght": 3}}}, ["drawn", "force_lenght", "force_length"]),
        (
            {"baselines": {"untrained": {}}, "options": {"policy": {"model": None, "tiny": {"layers": 2}}}},
            ["baselines.untrained", "policy.tiny"],
        ),
    ],
)
def test_mistakes(
    changes: dict[str, Any],
    words: list[str],
    program: Program,
    tiny_model: Path,
    posts_file: Path,
    tmp_path: Path,
) -> None:
    ended = program("study", "--config", write_options(tmp_path, options(tiny_model, posts_file, changes)))
    assert ended.code == 2, ended
    assert len(ended.err.splitlines()) == 1
    for word in words:
        assert word in ended.err, ended.err
    assert not (tmp_path / "runs").exists()


def test_what_an_evaluation_takes_over_from_the_run(
    tiny_model: Path, posts_file: Path, tmp_path: Path
) -> None:
    """All that says how a model is asked; which rows, how many, and its own options are the evaluation's."""
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"post": f"a {n}", "tldr": "b"}) + "\n" for n in range(9)))
    changes = {
        "methods": {"joint": {"data": {"instruction": "Short: {document}"}, "sampling": {"max_tokens": 30}}},
        "evaluations": {
            "other": {
                "data": {
                    "evaluation": str(other),
                    "evaluation_rows": -4,
                    "document_column": "post",
                    "reference_column": "tldr",
                },
                "length": {"target": 9},
            }
        },
        "baselines": {"drawn": {"temperature": 0.5}},
        "own_rows": 5,
    }
    config = write_options(tmp_path, options(tiny_model, posts_file, changes))
    command = parse_command(StudyConfig, ["--config", config], prog="", description="")
    assert not isinstance(command.run, Path)
    plan = planned(command.run)
    drawn, joint = ({one.set: one.options for one in subject.measurements} for subject in plan.subjects)
    assert plan.baseline == "drawn"
    assert joint["held"]["data"]["instruction"] == "Short: {document}"
    assert joint["held"]["data"]["evaluation"] == str(posts_file)
    assert "evaluation_rows" not in joint["held"]["data"]
    assert (joint["held"]["max_tokens"], joint["held"]["length"]["target"]) == (30, 12)
    assert (
        joint["other"]["data"] | {"evaluation_rows": -4, "document_column": "post"} == joint["other"]["data"]
    )
    assert (joint["other"]["length"]["target"], joint["other"]["length"]["tolerance"]) == (9, 4)
    assert joint["held"]["untouched"] == drawn["held"]["model"] == str(tiny_model)
    assert drawn["held"]["data"]["instruction"] == "Summarize.\n\n{document}", "asked as runs are by default"
    assert (drawn["held"]["temperature"], drawn["held"]["max_tokens"]) == (0.5, 20)
    assert "train" not in joint["held"]["data"]


def shipped(name: str) -> Plan:
    argv = ["--config", f"recipes/configs/{name}.yaml"]
    command = parse_command(StudyConfig, argv, prog="", description="", based=("options",))
    assert not isinstance(command.run, Path)
    return planned(command.run)


@pytest.mark.usefixtures("wordnet", "shared")
def test_the_shipped_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan = shipped("study")
    runs = [one.run for one in plan.subjects if one.run is not None]
    assert {run.seed for run in runs} == {0, 1, 2}
    for run in runs:
        assert sum(stage.steps for stage in run.config.stages) == 120
        assert (run.config.length.target, run.config.length.tolerance) == (64, 5)
        quality = {one.label for one in run.config.stages[-1].rewards} - {
            "length",
            "within",
            "repetition",
            "in_time",
            "whole_sentences",
            "whole_in_time",
        }
        assert quality == {"meteor", "rougeL"}
    by_method = {run.method: run.config.stages for run in runs}
    assert by_method["polished"] == by_method["separate"]
    assert {run.method for run in runs if run.config.stopping} == {"polished", "cooled", "decoupled"}
    paid = {
        name: {one.label for one in stages[-1].rewards if one.weight} for name, stages in by_method.items()
    }
    quality = {"meteor", "rougeL"}
    assert paid == {
        "length_only": {"length"},
        "published": quality,
        "joint": {"length", *quality},
        "decoupled": {
            "length",
            "within",
            "in_time",
            "whole_sentences",
            "whole_in_time",
            "repetition",
            *quality,
        },
        "cooled": {"length", "repetition", *quality},
        "staged_gated": {"length", "repetition", *quality},
        "separate": {"length", "within", "in_time", "repetition", *quality},
        "polished": {"length", "within", "in_time", "repetition", *quality},
        "constrained": {"length", "repetition", "within", *quality},
    }
    assert {one.label for one in by_method["staged_gated"][-1].rewards if one.gate} == quality
    staged = by_method["staged_gated"][0].rewards
    assert {one.label for one in staged if one.weight} == {"length", "repetition"}
    credit = {one.label: one.credit for one in by_method["separate"][0].rewards}
    assert {name for name, paid_for in credit.items() if paid_for == "stop"} == {"length", "within"}
    assert "all" not in credit.values()
    assert by_method["constrained"][-1].constraint is not None
    apart = {one.label: one.credit for one in by_method["decoupled"][-1].rewards}
    assert (apart.pop("whole_sentences"), apart.pop("whole_in_time")) == ("content", "stop")
    assert apart == {name: credit[name] for name in apart}, "as in `separate`"
    decoupled = next(run.config for run in runs if run.method == "decoupled")
    assert [phase.name for phase in decoupled.phases] == ["joint", "stopping", "cool"]
    each = {run.method for run in runs if run.config.grpo.normalize_rewards == "each"}
    assert each == {"decoupled"}


@pytest.mark.usefixtures("wordnet", "shared")
def test_the_shipped_study_of_three_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is prepared is what it trains on, and none of it is what it measures on."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "shared").symlink_to(SHARED)
    monkeypatch.chdir(checkout)
    config = parse(PrepareConfig, ["--config", "recipes/configs/three_kinds.yaml"], prog="", description="")
    prepared = prepare(config)
    write_prepared(prepared, make_card(prepared, config, None, {"command": "", "versions": {}}), config.out)
    plan = shipped("study_three_kinds")
    measured = plan.subjects[0].measurements
    assert [one.set for one in measured] == ["validation", "tldr", "scitldr"]
    trained = {one.document.strip() for one in prepared.splits["train"]}
    instructions = {one.kept["instruction"] for one in prepared.splits["train"]}
    for one in measured:
        data = EvaluateConfig.model_validate(tree.completed(EvaluateConfig, one.options)).data
        rows = config_rows(data, "evaluation", 0)
        assert rows is not None
        assert len(rows.rows) == 300
        assert data.instruction.removesuffix("\n\n{document}") in instructions
        held = {str(row.fields[data.document_column]).strip() for row in rows.rows}
        if one.set != "validation":  # DialogSum's own splits share rows
            assert not held & trained
    runs = [one.run for one in plan.subjects if one.run is not None]
    assert {run.method for run in runs} == {"separate", "polished", "published", "joint", "constrained"}
    assert all(run.config.data.instruction == "{instruction}\n\n{document}" for run in runs)


@pytest.mark.usefixtures("wordnet", "shared")
@pytest.mark.parametrize(("name", "file", "rows"), [("posts", "tldr", 1200), ("articles", "scitldr", 1692)])
def test_the_shipped_studies_of_one_other_kind(
    name: str, file: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows but the last 300 are trained on; those are measured, in the words that the model was taught."""
    monkeypatch.chdir(ROOT)
    plan = shipped(f"study_{name}")
    (measured,) = plan.subjects[0].measurements
    data = EvaluateConfig.model_validate(tree.completed(EvaluateConfig, measured.options)).data
    runs = [one.run for one in plan.subjects if one.run is not None]
    assert {run.method for run in runs} == {
        "decoupled",
        "cooled",
        "separate",
        "published",
        "joint",
        "constrained",
    }
    column = data.document_column
    held = [str(row.fields[column]) for row in config_rows(data, "evaluation", 0).rows]
    for run in runs:
        trained = [str(row.fields[column]) for row in config_rows(run.config.data, "train", 0).rows]
        assert (len(trained), len(held)) == (rows, 300)
        lines = (SHARED / "data" / f"{file}.train.jsonl").read_text().splitlines()
        assert [*trained, *held] == [json.loads(line)[column] for line in lines]
        assert run.config.data.instruction == data.instruction

"""The twelve configurations of the length study: what differs between them is what the study is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_sumrl.config import RunConfig
from mlx_sumrl.options.command_line import exit_code_of, parse
from mlx_sumrl.rewards import build_rewards
from mlx_sumrl.training.stages import laid_under
from recipes import grpo

from .programs import ROOT, SHARED

FOLDER = ROOT / "recipes" / "configs" / "length_study"
QUALITY = {
    "r": {"rougeL": 1.0},
    "m": {"meteor": 1.0},
    "b": {"bleu": 1.0},
    "mb": {"meteor": 0.5, "bleu": 0.5},
    "mr": {"meteor": 0.5, "rougeL": 0.5},
    "br": {"bleu": 0.5, "rougeL": 0.5},
}
LOGGED = {"length": 0.0, "rougeL": 0.0, "meteor": 0.0, "bleu": 0.0}
NAMES = [f"{way}_{quality}" for way in ("staged", "joint") for quality in QUALITY]


def read(name: str) -> RunConfig:
    argv = ["--config", str(FOLDER / f"{name}.yaml")]
    return parse(RunConfig, argv, prog="", description="", defaults=laid_under)


def test_there_are_twelve() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(NAMES)


@pytest.mark.usefixtures("wordnet")
@pytest.mark.parametrize("name", NAMES)
def test_each_is_its_rewards_and_nothing_else(name: str) -> None:
    config = read(name)
    way, _, quality = name.partition("_")
    weights = [{one.label: one.weight for one in stage.rewards} for stage in config.stages]
    if way == "staged":
        assert weights == [{**LOGGED, "length": 1.0}, {**LOGGED, **QUALITY[quality]}]
    else:
        assert weights == [{**LOGGED, "length": 1.0, **QUALITY[quality]}]
    assert sum(stage.steps for stage in config.stages) == 100
    assert (config.policy.tuning, config.sampling.temperature, config.grpo.beta) == ("lora", 0.7, 0.02)
    assert (config.optimizer.learning_rate, config.optimizer.schedule) == (2e-3, "linear")
    for stage in config.stages:
        assert build_rewards(stage, config.length).names == tuple(LOGGED)
    first = read(NAMES[0])
    differs = {field for field in RunConfig.model_fields if getattr(config, field) != getattr(first, field)}
    assert differs <= {"name", "stages"}
    for one, other in zip(config.stages, first.stages, strict=False):
        if way == "staged":
            plain = one.model_dump(exclude={"rewards"})
            assert plain == other.model_dump(exclude={"rewards"})


def test_names_of_runs_are_those_of_the_files() -> None:
    assert [read(name).name for name in NAMES] == [f"length-study-{name.replace('_', '-')}" for name in NAMES]


@pytest.mark.slow
@pytest.mark.usefixtures("shared", "wordnet")
def test_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of each stage on real rows with the real summariser, METEOR in processes."""
    monkeypatch.setenv("NLTK_DATA", str(SHARED / "nltk_data"))
    monkeypatch.chdir(ROOT)
    argv = [
        *("--config", str(FOLDER / "staged_mr.yaml"), "--runs_dir", str(tmp_path)),
        *("--stages.0.steps", "2", "--stages.1.steps", "2", "--data.train_rows", "32"),
        *("--data.evaluation_rows", "4", "--evaluation.length_matched_baseline", "false"),
        *("--grpo.prompts_per_step", "2", "--grpo.group_size", "4", "--scoring.processes", "1"),
        *("--report", "false"),
    ]
    assert exit_code_of(lambda: grpo.main("grpo_staged", "", argv)) == 0
    lines = (tmp_path / "length-study-staged-mr" / "metrics.jsonl").read_text().splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert [row["stage"] for row in rows] == ["length"] * 2 + ["quality"] * 2
    for row in rows:
        assert 0 < row["reward/meteor"] < 1
        assert 0 < row["reward/rougeL"] < 1
        assert row["reward/bleu"] >= 0
        assert row["time/score"] > 0
        assert not [key for key in row if "timeouts" in key or "crashes" in key]
    for row in rows[:2]:
        assert row["reward/mean"] == pytest.approx(row["reward/length"])
    for row in rows[2:]:
        assert row["reward/mean"] == pytest.approx((row["reward/meteor"] + row["reward/rougeL"]) / 2)

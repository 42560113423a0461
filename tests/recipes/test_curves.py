"""Curves of runs as they train, and of those that have ended, by recipes.curves."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from mlx_sumrl.reporting import curve_file
from mlx_sumrl.reporting.curve_file import CurveFile

from .jobs import Job
from .programs import Program, tiny_job, write_options


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many steps each drawing knew of."""
    known: list[int] = []
    save = curve_file.save

    def noting(figure: Any, path: Path) -> None:
        save(figure, path)
        known.append(len((path.parent / "metrics.jsonl").read_text().splitlines()))

    monkeypatch.setattr(curve_file, "save", noting)
    return known


def test_a_run_draws_at_checkpoints_and_at_the_end_of_phases(tmp_path: Path, drawn: list[int]) -> None:
    job = Job(tmp_path, {"curves": {"every_s": 0}, "checkpoint": {"every": 2}, "sft": {"steps": 3}})
    trainer = job.trainer()
    # By a clock that stands still no drawing takes time, and the next one may come at once.
    trainer.curves = CurveFile(job.run.path, job.config.curves, print, lambda: 0.0)
    assert job.config.sft is not None
    trainer.sft(job.prepared.train, job.config.sft)
    trainer.stage(job.config.stages[0], job.prepared.train)
    assert drawn == [2, 3, 4, 6]  # checkpoints, and the ends of sft (3) and of the stage (6)
    root = ElementTree.parse(job.run.path / "curves.svg").getroot()
    assert root.tag.endswith("svg")


def test_a_run_goes_on_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Job(tmp_path, {"name": "plain", "curves": {"draw": False}}).train()
    monkeypatch.setattr(curve_file, "draw", lambda runs: 1 / 0)
    broken = Job(tmp_path, {"name": "broken"})
    rows = broken.train()
    assert not (broken.run.path / "curves.svg").exists()
    assert [row["loss"] for row in rows] == [row["loss"] for row in plain]


def test_programs(program: Program, tmp_path: Path) -> None:
    options = write_options(tmp_path, tiny_job({"sft": {"steps": 2}}))
    stages = "--stages", json.dumps([{"name": "only", "steps": 2, "rewards": [{"kind": "length"}]}])
    for name in ("one", "two"):
        ended = program("grpo_staged", "--config", options, "--name", name, *stages)
        assert ended.code == 0, ended.err
        assert f"curves runs/{name}/curves.svg" in ended.out
    (tmp_path / "runs" / "one" / "curves.svg").unlink()
    assert program("curves", "runs/one").out == "wrote runs/one/curves.svg\n"
    assert program("curves", "runs/one", "runs/two/", "--out", "both.svg").code == 0
    text = (tmp_path / "both.svg").read_text()
    assert "one: training batches" in text
    assert ">two<" in text
    assert program("curves", "--out=both.png", "--runs", "runs/one,runs/two").code == 0
    assert "python -m recipes.curves" in program("curves", "--help").out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "runs"),
        (["runs/nothing"], "runs/nothing holds no run that has taken a step"),
        (["a", "b"], "give --out comparison.svg for the 2 runs"),
        (["a", "--out", "a.gif"], "give it the ending .svg or .png"),
        (["a", "--runs", "b"], "name all runs in one way"),
        (["a", "--wide", "1"], "unknown option --wide"),
    ],
)
def test_bad_input(program: Program, argv: list[str], said: str) -> None:
    ended = program("curves", *argv)
    assert ended.code == 2
    assert said in ended.err
    assert ended.err.count("\n") == 1

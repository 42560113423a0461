"""recipes.compare as a program: what runs leave, what is said of two of them, and what is wrong with bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .programs import Program, tiny_job, write_options

STAGE = "--stages", json.dumps([{"name": "only", "steps": 2, "rewards": [{"kind": "length"}]}])


@pytest.fixture
def runs(program: Program, tmp_path: Path, posts_file: Path) -> list[str]:
    """Two seeds of one tiny run; the first has left its report itself."""
    data = {"grammar": None, "train": str(posts_file), "evaluation": str(posts_file), "evaluation_rows": 6}
    options = write_options(
        tmp_path,
        tiny_job({"data": data, "sft": {"steps": 2}, "export": {"fused": False}, "curves": {"draw": False}}),
    )
    for seed in ("0", "1"):
        name, report = f"job-s{seed}", "true" if seed == "0" else "false"
        ended = program(
            "grpo_staged", "--config", options, "--name", name, "--seed", seed, "--report", report, *STAGE
        )
        assert ended.code == 0, ended.err
        assert ("report runs/job-s0/report.html" in ended.out) == (seed == "0")
    return ["runs/job-s0", "runs/job-s1"]


def test_runs(program: Program, tmp_path: Path, runs: list[str]) -> None:
    left = (tmp_path / runs[0] / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / runs[1] / "report.html").exists()
    assert "after only" in left
    assert "--seed 0" in left  # how to do it again

    alone = program("compare", runs[0])
    assert alone.code == 0, alone.err
    assert "after only against before, 6 rows" in alone.out
    assert "wrote runs/job-s0/report.html" in alone.out
    assert (tmp_path / runs[0] / "report.html").read_text(encoding="utf-8") == left
    assert all(len(line) <= 80 for line in alone.out.splitlines())

    both = program("compare", *runs, "--group", "seeds", "--out", "seeds", "--comparison.resamples", "200")
    assert both.code == 0, both.err
    assert "after only against before, 6 rows, 2 and 2 seeds" in both.out
    said = json.loads((tmp_path / "seeds" / "comparison.json").read_text())
    assert said["seeds"] == {"before": 2, "after only": 2}
    assert {one["verdict"] for one in said["comparisons"]} <= {"better", "worse", "no difference shown"}
    kept = {path.name for path in (tmp_path / "seeds" / "figures").iterdir()}
    assert {"lengths.svg", "lengths.png", "rewards.svg", "effects.png"} <= kept

    means = {}
    for name in ("before", "only"):
        rows = json.loads((tmp_path / runs[0] / "evaluation" / f"{name}.json").read_text())["rows"]
        means[name] = sum(row["metrics"]["rougeL"] for row in rows) / len(rows)
    files = [f"{run}/evaluation/{name}.json" for run in runs for name in ("before", "only")]
    named = program(
        "compare",
        f"a={files[0]}",
        f"b={files[1]},{files[3]}",
        "--metrics",
        "rougeL",
        "--out=named",
        "--samples",
        "1",
    )
    assert named.code == 0, named.err
    [one] = json.loads((tmp_path / "named" / "comparison.json").read_text())["comparisons"]
    assert one["baseline_mean"] == pytest.approx(means["before"])
    assert one["seeds"] == [1, 2]


def test_help(program: Program) -> None:
    said = program("compare", "--help").out
    assert "staged=runs/s0,runs/s1" in said
    assert "--comparison.confidence" in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "compared"),
        (["nothing.json"], "nothing.json is not there"),
        (["folder"], "folder holds no run"),
        (["a=,"], "write name=path,path, or a path"),
        (["a.json", "--compared", "b.json"], "name all in one way"),
        (["a.json", "--wide", "1"], "unknown option --wide"),
        (["rows.jsonl"], "cannot be read as JSON"),
        (["rows.jsonl", "--out", "rows.jsonl"], "is a file: name a folder"),
    ],
)
def test_bad_input(program: Program, tmp_path: Path, argv: list[str], said: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"id": 1}\n{"id": 2}\n')
    ended = program("compare", *argv)
    assert ended.code == 2
    assert said in ended.err
    assert ended.err.count("\n") == 1

"""A study in real processes: run to its end, killed and gone on with, two runs at once, and with a run that fails."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_sumrl.errors import UserError
from mlx_sumrl.options.tree import merged
from recipes.study import main
from recipes.study_work import threads_of

from .programs import VOWELS, start, tiny_job, write_options

pytestmark = pytest.mark.slow

CLOCKS = ("time/", "memory/", "tokens_per_second")
"""What differs between two runs of the same thing."""
RUNS = ("joint-seed0", "staged-seed0", "joint-seed1", "staged-seed1")
TAUGHT, STEPS = 24, 6
"""Supervised steps, in which the model learns to end at all, and those of the stages."""
PATIENCE_S = 300.0

SLOW = VOWELS.replace("    return", "    import time\n    time.sleep(0.2)\n    return")
BROKEN = """
def vowels(prompts, completions, **columns):
    raise RuntimeError("no vowels today")
"""


def options(
    folder: Path, model: Path, posts: list[dict[str, str]], changes: Mapping[str, Any]
) -> dict[str, Any]:
    """Two methods on a tiny model, which learns brief texts first; drawn, so that no two runs have the same numbers."""
    folder.mkdir()
    rows = [
        {**post, "summary": " ".join(post["summary"].split()[: 3 + n % 3])}
        for n, post in enumerate(posts[:16])
    ]
    (folder / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("mine.py", "more.py"):
        (folder / name).write_text(VOWELS)
    job = tiny_job({"policy": {"model": str(model)}, "grpo": {"group_size": 3}, "checkpoint": {"every": 2}})
    del job["policy"]["tiny"], job["data"]["grammar"]
    job["sft"] = {"steps": TAUGHT, "batch_size": 8, "optimizer": {"learning_rate": 1e-2}}
    job["data"] |= {"train": "posts.jsonl", "evaluation": "posts.jsonl"}
    job["reporting"] = {"rollouts_every": 1, "rollout_groups": 2}
    job["scoring"] = {"processes": 0}
    write_options(folder, job)
    length, quality = {"kind": "length"}, {"kind": "quality", "weight": 2}
    more = {"kind": "function", "function": "more.py:vowels", "name": "more", "weight": 0}
    given = {
        "options": {"base": "job.yaml"},
        "methods": {
            "joint": {"stages": [{"name": "joint", "steps": STEPS, "rewards": [length, quality, more]}]},
            "staged": {
                "stages": [
                    {"name": "length", "steps": 3, "rewards": [length]},
                    {"name": "quality", "steps": 3, "rewards": [length, quality]},
                ]
            },
        },
        "rewards": {"vowels": [{"kind": "function", "function": "mine.py:vowels"}]},
        "seeds": [0, 1],
        "evaluations": {"posts": {"temperature": 1.0, "data": {"evaluation_rows": -6}}},
        "baselines": {"untrained": {}},
        "own_rows": 2,
        "comparison": {"resamples": 100},
    }
    return dict(merged(given, changes))


@dataclass(frozen=True)
class Study:
    """A study's folder, and what was said."""

    folder: Path
    said: str

    @property
    def path(self) -> Path:
        return self.folder / "runs" / "study"

    def json(self, name: str) -> dict[str, Any]:
        content = json.loads((self.path / name).read_text())
        assert isinstance(content, dict)
        return content

    def metrics(self, run: str) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl without what a clock said."""
        rows = map(json.loads, (self.path / "runs" / run / "metrics.jsonl").read_text().splitlines())
        return [{key: value for key, value in row.items() if not key.startswith(CLOCKS)} for row in rows]

    def measured(self, name: str) -> dict[str, Any]:
        """An evaluation without what it says of folders."""
        content = self.json(f"evaluation/posts/{name}.json")
        return {key: content[key] for key in ("summary", "rows", "asked", "prompts_sha256")}


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, said


@pytest.fixture(scope="module")
def environment() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NLTK_DATA", raising=False)  # METEOR takes its seconds elsewhere
        patch.setenv("COLUMNS", "100")
        for name, value in threads_of(2).items():  # as two at once have: other threads are other bits
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def whole(
    environment: None, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, posts: list[dict[str, str]]
) -> Study:
    """One that nobody interrupts."""
    folder = tmp_path_factory.mktemp("studies") / "whole"
    given = options(folder, tiny_model, posts, {})
    code, said = ended(start("study", "--config", write_options(folder, given, "study.yaml"), folder=folder))
    assert code == 0, said
    return Study(folder, said)


def test_the_grid_is_run_seed_by_seed_to_a_table_of_all(whole: Study) -> None:
    assert re.findall(r"^(\S+) \(\d of 5\): begins$", whole.said, re.MULTILINE) == list(RUNS)
    for run in RUNS:
        assert [row["step"] for row in whole.metrics(run)] == list(range(1, TAUGHT + STEPS + 1))
        assert f"{run}: done in 0:" in whole.said
    found = whole.json("study.json")["sets"]["posts"]
    for line in ("joint", "staged", "untrained"):
        names = [line] if line == "untrained" else [f"{line}-seed0", f"{line}-seed1"]
        by_hand: dict[str, list[float]] = {}
        for name in names:
            rows = whole.measured(name)["rows"]
            assert len(rows) == 6
            assert rows[-1]["id"] == "posts.jsonl:16"
            within = [row["finish_reason"] == "stop" and abs(row["length"] - 12) <= 4 for row in rows]
            by_hand.setdefault("within", []).append(float(np.mean(within)))
            by_hand.setdefault("length_mean", []).append(float(np.mean([row["length"] for row in rows])))
            for metric in ("rouge1", "rougeL", "repetition", "distinct_2", "ends_sentence", "perplexity"):
                known = [row["metrics"][metric] for row in rows if row["metrics"][metric] is not None]
                middle = np.median if metric == "perplexity" else np.mean
                if known:
                    name_here = "perplexity_median" if metric == "perplexity" else metric
                    by_hand.setdefault(name_here, []).append(float(middle(known)))
        assert {"within", "length_mean", "perplexity_median"} <= by_hand.keys()
        for metric, values in by_hand.items():
            assert found[line]["mean"][metric] == pytest.approx(np.mean(values)), metric
            spread = found[line]["spread"][metric]
            assert spread == (pytest.approx(np.std(values, ddof=1)) if len(values) == 2 else None), metric
        length = f"{np.mean(by_hand['length_mean']):.1f}"
        assert re.search(rf"^  {line}( \(2\))? .* {length} ", whole.said, re.MULTILINE)
    assert found["joint"]["mean"]["length_mean"] != found["staged"]["mean"]["length_mean"]


def test_what_was_trained_on_is_counted(whole: Study) -> None:
    for line in ("joint", "staged"):
        told = whole.json("study.json")["trained"][line]
        assert told["allowed"]["rollouts"] == STEPS * 2 * 3
        for seed in (0, 1):
            run = f"{line}-seed{seed}"
            path = whole.path / "runs" / run / "rollouts.jsonl"
            groups = [json.loads(row) for row in path.read_text().splitlines()]
            completions = [one for group in groups for one in group["completions"]]
            # The stop token is sampled, too, and is no part of a length.
            tokens = sum(one["length"] + (one["finish_reason"] == "stop") for one in completions)
            assert told["made"][run] == {
                "steps": STEPS,
                "rollouts": len(completions),
                "tokens": tokens,
                "supervised_steps": TAUGHT,
            }


def test_the_pages_say_the_same(whole: Study) -> None:
    means = whole.json("study.json")["sets"]["posts"]
    compared = whole.json("report/posts/comparison.json")
    assert compared["baseline"] == "untrained"
    assert compared["seeds"] == {"untrained": 1, "joint": 2, "staged": 2}
    for line in ("untrained", "joint", "staged"):
        for metric in ("within", "rougeL"):
            assert compared["means"][line][metric] == pytest.approx(means[line]["mean"][metric])
    assert "<html" in (whole.path / "report" / "posts" / "report.html").read_text()[:500]
    page = (whole.path / "study.md").read_text()
    mean, spread = (means["joint"][part]["length_mean"] for part in ("mean", "spread"))
    assert f"| {mean:.1f} ± {spread:.1f} |" in page


def test_what_is_finished_is_only_put_together_again(
    whole: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(whole.folder)
    page = whole.path / "study.md"
    before, logs = page.read_bytes(), sorted(path.stat().st_mtime_ns for path in whole.path.glob("logs/*"))
    page.unlink()
    main(["--resume", "runs/study"])
    said = capsys.readouterr().out
    assert "5 of 5 runs and baselines are done already" in said
    assert "begins" not in said
    assert "measuring" not in said
    assert said.rpartition("trained on")[2] == whole.said.rpartition("trained on")[2]
    assert page.read_bytes() == before
    assert sorted(path.stat().st_mtime_ns for path in whole.path.glob("logs/*")) == logs


def test_a_study_is_extended(
    whole: Study, environment: None, tmp_path: Path, tiny_model: Path, posts: list[dict[str, str]]
) -> None:
    """By a seed and a baseline: what is done stays, and ends up in one table with what is new."""
    folder = tmp_path / "extended"
    shutil.copytree(whole.folder, folder)
    given = options(tmp_path / "other", tiny_model, posts, {"seeds": [0, 1, 2], "at_once": 2})
    given["baselines"]["forced"] = {"force_length": 12}
    study = Study(folder, "")
    before = {run: (study.path / "runs" / run / "metrics.jsonl").stat().st_mtime_ns for run in RUNS}
    more = write_options(folder, given, "more.yaml")
    code, said = ended(start("study", "--config", more, "--extend", "runs/study", folder=folder))
    assert code == 0, said
    assert "5 of 8 runs and baselines are done already" in said
    after = {run: (study.path / "runs" / run / "metrics.jsonl").stat().st_mtime_ns for run in RUNS}
    assert after == before
    sets = study.json("study.json")["sets"]["posts"]
    assert set(sets) == {"untrained", "forced", "joint", "staged"}
    for run in RUNS:
        assert study.measured(run) == whole.measured(run)
    for method in ("joint", "staged"):
        lengths = [study.measured(f"{method}-seed{seed}")["summary"]["length_mean"] for seed in range(3)]
        assert sets[method]["mean"]["length_mean"] == pytest.approx(np.mean(lengths))
    code, said = ended(start("study", "--resume", "runs/study", folder=folder))
    assert "8 of 8 runs and baselines are done already" in said


def test_what_a_study_has_begun_keeps_its_options(
    whole: Study, tmp_path: Path, tiny_model: Path, posts: list[dict[str, str]]
) -> None:
    given = options(tmp_path / "other", tiny_model, posts, {})
    before = (whole.path / "config.json").read_bytes()

    def refused(changes: Mapping[str, Any], *argv: str) -> str:
        file = write_options(whole.folder, merged(given, changes), "more.yaml")
        argv = argv or ("--config", file)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(whole.folder)
            with pytest.raises(UserError) as caught:
                main([*argv, "--extend", "runs/study"])
        assert (whole.path / "config.json").read_bytes() == before
        return str(caught.value)

    assert "begun joint-seed0 with grpo.group_size 3, and the file says 2" in refused(
        {"options": {"grpo": {"group_size": 2}}}
    )
    assert "begun joint-seed1, which the file has not" in refused({"seeds": [0]})
    evaluation = {"evaluations": {"posts": {"temperature": 0.5}}}
    assert "begun posts/joint-seed0 with temperature 1.0, and the file says 0.5" in refused(evaluation)
    assert "leave out --extend" in refused({}, "--resume", "runs/study")


def test_failed_killed_and_interrupted_with_two_at_once_it_ends_the_same(
    whole: Study, environment: None, tmp_path: Path, tiny_model: Path, posts: list[dict[str, str]]
) -> None:
    """A reward that raises; mended, a SIGKILL in training, a SIGINT there, a SIGKILL in measuring; then the rest."""
    folder = tmp_path / "killed"
    given = options(folder, tiny_model, posts, {"at_once": 2})
    (folder / "more.py").write_text(BROKEN)
    study, again = Study(folder, ""), ("--resume", "runs/study")

    def steps(run: str) -> int:
        path = study.path / "runs" / run / "metrics.jsonl"
        return max(len(path.read_text().splitlines()) - TAUGHT, 0) if path.is_file() else 0

    def stopped(number: signal.Signals, when: Callable[[], bool]) -> tuple[int, str]:
        process = start("study", *again, folder=folder)
        until = time.monotonic() + PATIENCE_S
        while not when():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.002)
        process.send_signal(number)
        return ended(process)

    code, said = ended(start("study", "--config", write_options(folder, given, "study.yaml"), folder=folder))
    assert code == 2, said
    error = next(line for line in said.splitlines() if line.startswith("error: "))
    for run in ("joint-seed0", "joint-seed1"):
        assert f"{run}: training failed with code 1" in said
        assert f"{run} (training)" in error
        assert steps(run) == 0
    assert "RuntimeError: no vowels today" in said
    assert "--resume runs/study" in error
    assert "posts is without joint-seed0, joint-seed1" in said
    assert list(study.json("study.json")["sets"]["posts"]) == ["untrained", "staged"]
    finished = [study.path / "runs" / f"staged-seed{seed}" / "metrics.jsonl" for seed in (0, 1)]
    started = [study.json(f"runs/{run}/config.json")["started"] for run in RUNS]
    kept = [path.stat().st_mtime_ns for path in finished]

    (folder / "more.py").write_text(SLOW)  # the same numbers, and time to hit a step
    stopped(signal.SIGKILL, lambda: steps("joint-seed0") >= 2)
    killed_at = steps("joint-seed0")
    assert killed_at < STEPS, "it was killed with the study"
    time.sleep(1.0)
    assert steps("joint-seed0") == killed_at
    checkpoints, log = (
        study.path / "runs" / "joint-seed0" / "checkpoints",
        study.path / "logs" / "joint-seed0.log",
    )
    told, saved = len(log.read_text()), max(int(path.name[5:]) for path in checkpoints.glob("step-*"))

    def goes_on() -> bool:
        return "going on after step" in log.read_text()[told:] and steps("joint-seed0") > saved - TAUGHT

    code, said = stopped(signal.SIGINT, goes_on)
    assert code == 130, said
    assert "stopping after this step" in said
    assert "go on with: python -m recipes.study --resume runs/study" in said
    saved = max(int(path.name[5:]) for path in checkpoints.glob("step-*"))
    assert saved == TAUGHT + steps("joint-seed0"), "the step was finished and saved"
    measuring = study.path / "options" / "posts" / "joint-seed0.yaml"
    assert not measuring.exists()
    stopped(signal.SIGKILL, measuring.exists)
    code, said = ended(start("study", *again, folder=folder))
    assert code == 0, said
    assert re.search("[34] of 5 runs and baselines are done already", said)

    for run in RUNS:
        assert study.metrics(run) == whole.metrics(run)
        assert study.measured(run) == whole.measured(run)
    assert [path.stat().st_mtime_ns for path in finished] == kept, "trained once"
    assert [study.json(f"runs/{run}/config.json")["started"] for run in RUNS] == started
    assert not list((study.path / "evaluation" / "posts").glob("*.part"))
    assert study.json("study.json") == whole.json("study.json")
    assert (study.path / "study.md").read_bytes() == (whole.path / "study.md").read_bytes()

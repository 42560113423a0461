"""A run's folder: refused, locked, written whole, read back, cut back to a checkpoint."""

from __future__ import annotations

import fcntl
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_sumrl.config import DataConfig, PolicyConfig, RunConfig, SftConfig, StageConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.reporting import json_files
from mlx_sumrl.reporting.run_folder import RunFolder


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig(
        name="one",
        runs_dir=tmp_path / "runs",
        seed=7,
        policy=PolicyConfig(model="some/model"),
        data=DataConfig(train="rows.jsonl"),
        sft=SftConfig(steps=3),
        stages=(StageConfig.model_validate({"name": "a", "steps": 2, "rewards": [{"kind": "length"}]}),),
    )


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


class TestCreate:
    def test_config_json(self, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["recipes/some.py", "--name", "two words"])
        with RunFolder.create(config) as folder:
            record = json.loads((folder.path / "config.json").read_text())
        assert RunConfig.model_validate(record["options"]) == config
        assert record["seed"] == 7
        assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
        assert record["versions"]["numpy"] == np.__version__
        assert {"mlx", "mlx-lm", "mlx_sumrl"} <= record["versions"].keys()
        assert record["platform"]["cores"] == os.cpu_count()
        assert record["command"] == "recipes/some.py --name 'two words'"

    @pytest.mark.parametrize("left", ["metrics.jsonl", "checkpoints", "export"])
    def test_a_folder_with_another_run_is_refused(self, config: RunConfig, left: str) -> None:
        RunFolder.create(config).close()
        (config.folder / left).mkdir()
        before = (config.folder / "config.json").read_bytes()
        with pytest.raises(UserError) as caught:
            RunFolder.create(config)
        for part in (str(config.folder), "--name", f"--resume {config.folder}"):
            assert part in str(caught.value)
        assert (config.folder / "config.json").read_bytes() == before

    def test_a_run_that_failed_before_it_began_is_taken_over(self, config: RunConfig) -> None:
        RunFolder.create(config).close()
        RunFolder.create(config.model_copy(update={"seed": 8})).close()
        assert json.loads((config.folder / "config.json").read_text())["seed"] == 8

    def test_a_folder_that_cannot_be_made(self, config: RunConfig) -> None:
        config.runs_dir.write_text("a file")
        with pytest.raises(UserError, match="runs_dir"):
            RunFolder.create(config)


class TestOpen:
    def test_gives_back_the_options(self, config: RunConfig) -> None:
        RunFolder.create(config).close()
        read, folder = RunFolder.open(config.folder, RunConfig)
        with folder:
            assert read == config
            assert folder.path == config.folder
            assert folder.changes() == []

    def test_no_run(self, config: RunConfig, tmp_path: Path) -> None:
        RunFolder.create(config).close()
        with pytest.raises(UserError, match=r"holds no run .*there are .*one"):
            RunFolder.open(config.runs_dir / "two", RunConfig)
        with pytest.raises(UserError, match=r"holds no run .*start one without --resume"):
            RunFolder.open(tmp_path / "nowhere" / "two", RunConfig)

    @pytest.mark.parametrize("content", ["{", "[]", '{"seed": 1}', '{"options": {"polcy": 1}}'])
    def test_a_damaged_record(self, config: RunConfig, content: str) -> None:
        RunFolder.create(config).close()
        (config.folder / "config.json").write_text(content)
        with pytest.raises(UserError) as caught:
            RunFolder.open(config.folder, RunConfig)
        assert str(config.folder) in str(caught.value)

    def test_changed_versions_are_named(self, config: RunConfig) -> None:
        with RunFolder.create(config) as folder:
            record = json.loads((folder.path / "config.json").read_text())
            record["versions"]["mlx"] = "0.1"
            folder.write_json("config.json", record)
            assert [change for change in folder.changes() if change.startswith("mlx 0.1 -> ")]
            assert len(folder.changes()) == 1


class TestLock:
    def test_two_at_once_are_refused(self, config: RunConfig) -> None:
        with RunFolder.create(config):
            with pytest.raises(UserError) as caught:
                RunFolder.open(config.folder, RunConfig)
            assert f"process {os.getpid()}" in str(caught.value)
            assert str(config.folder / ".lock") in str(caught.value)
            with pytest.raises(UserError):
                RunFolder.create(config)
        RunFolder.open(config.folder, RunConfig)[1].close()

    def test_a_process_that_was_killed_leaves_no_lock(self, config: RunConfig) -> None:
        RunFolder.create(config).close()
        script = (
            "import os, signal, sys, pathlib\n"
            "from mlx_sumrl.config import RunConfig\n"
            "from mlx_sumrl.reporting.run_folder import RunFolder\n"
            "held = RunFolder.open(pathlib.Path(sys.argv[1]), RunConfig)\n"
            "print('held', flush=True)\n"
            "sys.stdin.read()\n"
        )
        command = [sys.executable, "-c", script, str(config.folder)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            with pytest.raises(UserError, match=f"process {other.pid}"):
                RunFolder.open(config.folder, RunConfig)
            other.kill()
            other.wait(timeout=20)
        RunFolder.open(config.folder, RunConfig)[1].close()

    def test_it_is_advisory_on_the_file(self, config: RunConfig) -> None:
        with (
            RunFolder.create(config),
            (config.folder / ".lock").open() as file,
            pytest.raises(BlockingIOError),
        ):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class TestRecords:
    def test_a_line_per_step_with_null_for_what_is_not_finite(self, config: RunConfig) -> None:
        with RunFolder.create(config) as folder:
            folder.append_metrics({"step": 1, "loss": math.nan, "kl": -math.inf, "stage": "a"})
            folder.append_metrics({"step": 2, "loss": np.float32(0.5), "reward": mx.array([1.0, math.inf])})
            assert lines(folder.path / "metrics.jsonl") == [
                {"step": 1, "loss": None, "kl": None, "stage": "a"},
                {"step": 2, "loss": 0.5, "reward": [1.0, None]},
            ]
            assert folder.metrics() == lines(folder.path / "metrics.jsonl")

    def test_text_of_any_kind_stays_on_its_line(self, config: RunConfig) -> None:
        texts = ["摘要 été", "two\nlines\u2028\x85", "half a pair \ud800"]
        with RunFolder.create(config) as folder:
            folder.append_rollouts([{"step": 1, "text": text} for text in texts])
            raw = (folder.path / "rollouts.jsonl").read_bytes()
        assert raw.count(b"\n") == 3
        assert [json.loads(line)["text"] for line in raw.splitlines()] == texts
        assert "摘要 été" in raw.decode("utf-8"), "people read this file too"

    def test_truncate_after(self, config: RunConfig) -> None:
        with RunFolder.create(config) as folder:
            for step in range(1, 6):
                folder.append_metrics({"step": step})
            folder.append_rollouts([{"step": 2, "n": 0}, {"step": 2, "n": 1}, {"step": 4, "n": 2}])
            with (folder.path / "metrics.jsonl").open("a") as file:
                file.write('{"step": 3, "lo')  # torn by a crash
            assert folder.truncate_after(3) == 4
            assert [row["step"] for row in lines(folder.path / "metrics.jsonl")] == [1, 2, 3]
            assert [row["n"] for row in lines(folder.path / "rollouts.jsonl")] == [0, 1]
            folder.append_metrics({"step": 4})
            assert [row["step"] for row in folder.metrics()] == [1, 2, 3, 4]
            assert folder.truncate_after(9) == 0

    def test_a_whole_last_line_without_its_end_is_torn_too(self, config: RunConfig) -> None:
        with RunFolder.create(config) as folder:
            (folder.path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')
            assert folder.truncate_after(5) == 1
            folder.append_metrics({"step": 2})
            assert [row["step"] for row in folder.metrics()] == [1, 2]

    def test_nothing_to_truncate(self, config: RunConfig) -> None:
        with RunFolder.create(config) as folder:
            assert folder.truncate_after(0) == 0
            assert folder.metrics() == []


class TestWriteJson:
    def test_below_the_folder(self, config: RunConfig) -> None:
        with RunFolder.create(config) as folder:
            path = folder.write_json(
                "evaluation/final.json", {"rougeL": math.nan, "at": Path("x"), "t": (1, 2)}
            )
        assert path == config.folder / "evaluation" / "final.json"
        assert json.loads(path.read_text()) == {"rougeL": None, "at": "x", "t": [1, 2]}

    def test_what_was_there_survives_a_failure(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        target = tmp_path / "state.json"
        json_files.write_json(target, {"step": 1})

        def full(_: int) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            json_files.write_json(target, {"step": 2})
        assert json.loads(target.read_text()) == {"step": 1}
        assert [path.name for path in tmp_path.iterdir()] == ["state.json"]

    def test_what_is_no_json_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError, match="object"):
            json_files.write_json(tmp_path / "x.json", {"a": object()})
        assert not list(tmp_path.iterdir())

"""Trackers: what they wrote, read back from their own files; what they must not do to a run. No network."""

from __future__ import annotations

import importlib.util
import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mlx_sumrl.config import DataConfig, PolicyConfig, RunConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.reporting.run_folder import RunFolder
from mlx_sumrl.reporting.trackers import attached, numbers


def config(folder: Path, *trackers: str) -> RunConfig:
    return RunConfig(
        name="one",
        runs_dir=folder,
        policy=PolicyConfig(model="some/model"),
        data=DataConfig(train="rows.jsonl"),
        reporting={"trackers": trackers},  # type: ignore[arg-type]
    )


def row(step: int, stage: str) -> dict[str, Any]:
    """As a trainer writes it, with what cannot be drawn."""
    broken = {"kl": math.nan, "grad_norm": math.inf, "reward/names": ["a"], "note": "text", "missing": None}
    return {"step": step, "stage": stage, "loss": 1 / step, "length/mean": 10 * step, "done": True, **broken}


def run_in_two_parts(options: RunConfig, notes: list[str]) -> None:
    """Seven steps of which the last three are lost: a checkpoint after 4, then steps 5 to 9 in another stage."""
    with RunFolder.create(options) as run:
        run.track(options, notes.append)
        for step in range(1, 8):
            run.append_metrics(row(step, "length"))
    _, again = RunFolder.open(options.folder, RunConfig)
    with again as run:
        run.truncate_after(4)
        run.track(options, notes.append)
        for step in range(5, 10):
            run.append_metrics(row(step, "quality"))
    assert [one["step"] for one in again.metrics()] == list(range(1, 10))


def test_numbers() -> None:
    assert numbers(row(2, "length")) == {"loss": 0.5, "length/mean": 20.0, "done": 1.0}


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    notes: list[str] = []
    options = config(tmp_path, "tensorboard")
    run_in_two_parts(options, notes)
    shown = EventAccumulator(str(options.folder / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    assert set(shown.Tags()["scalars"]) == {"loss", "length/mean", "done"}
    losses = [(event.step, event.value) for event in shown.Scalars("loss")]
    assert losses == [(step, pytest.approx(1 / step)) for step in range(1, 10)]
    texts = [(event.step, make_ndarray(event.tensor_proto)[0].decode()) for event in shown.Tensors("stage")]
    assert texts == [(1, "length"), (5, "quality")]
    written = make_ndarray(shown.Tensors("options")[0].tensor_proto)[0].decode()
    assert json.loads("\n".join(line[4:] for line in written.splitlines())) == options.to_json()
    assert not notes


def offline_records(file: Path) -> Iterator[Any]:
    """Records of W&B's file: LevelDB's log format (blocks of 32 KiB, parts of a record marked first, middle, last)
    behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    content = file.read_bytes()
    place, parts = 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, last
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def history(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for record in offline_records(file):
            if record.HasField("history"):
                items = record.history.item
                rows.append(
                    {"/".join(one.nested_key) or one.key: json.loads(one.value_json) for one in items}
                )
    return rows


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "some project")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    notes: list[str] = []
    options = config(tmp_path, "wandb")
    run_in_two_parts(options, notes)
    rows = history(options.folder)
    # Steps 5 to 7 were sent before the run was stopped; they are not sent again.
    assert [one["_step"] for one in rows] == list(range(1, 10))
    assert [one["stage"] for one in rows] == ["length"] * 7 + ["quality"] * 2
    assert [one["loss"] for one in rows] == pytest.approx([1 / step for step in range(1, 10)])
    assert {name for one in rows for name in one if not name.startswith("_")} == {
        *("loss", "length/mean", "done", "stage")
    }
    runs = [
        record.run
        for file in options.folder.glob("wandb/offline-run-*/*.wandb")
        for record in offline_records(file)
        if record.HasField("run")
    ]
    known = json.loads((options.folder / "wandb.json").read_text())
    assert {run.run_id for run in runs} == {known["id"]}
    assert {(run.project, run.display_name) for run in runs} == {("some project", "one")}
    assert known["step"] == 9
    assert not notes


def test_a_missing_package_is_known_before_there_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        RunFolder.create(config(tmp_path / "runs", "wandb"))
    assert str(caught.value) == (
        "reporting.trackers has wandb, which is not installed: run `pip install 'mlx_sumrl[track]'`, or leave it out"
    )
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_its_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B itself makes a folder wandb/, which Python would take for a package without files."""
    (tmp_path / "nowhere_installed").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert importlib.util.find_spec("nowhere_installed") is not None
    with pytest.raises(UserError, match="not installed"):
        attached.check_trackers(["nowhere_installed"])  # type: ignore[list-item]


class Broken:
    """A tracker that fails from a step on, or at once."""

    def __init__(self, fails_at: int, told: list[str]) -> None:
        self.fails_at, self.told = fails_at, told

    def start(self, config: Mapping[str, Any], name: str) -> None:
        self.told.append(f"start {name}")
        if not self.fails_at:
            raise ConnectionError("No key.\nNot here.")

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        if step >= self.fails_at:
            raise OSError("disk full")
        self.told.append(f"step {step}")

    def finish(self) -> None:
        self.told.append("finish")


def test_one_that_fails_is_said_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, list[str]] = {"tensorboard": [], "wandb": []}
    kinds = {
        "tensorboard": lambda run: Broken(3, told["tensorboard"]),
        "wandb": lambda run: Broken(99, told["wandb"]),
    }
    monkeypatch.setattr(attached, "KINDS", kinds)
    notes: list[str] = []
    options = config(tmp_path, "tensorboard", "wandb", "wandb")
    with RunFolder.create(options) as run:
        run.track(options, notes.append)
        for step in range(1, 6):
            run.append_metrics(row(step, "length"))
        assert len(run.metrics()) == 5
    assert notes == ["tensorboard failed (disk full); the run goes on without it"]
    assert told["tensorboard"] == ["start one", "step 1", "step 2"]
    assert told["wandb"] == ["start one", *(f"step {step}" for step in range(1, 6)), "finish"]


def test_one_that_cannot_start_is_an_error_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[str] = []
    kinds = {"tensorboard": lambda run: Broken(9, first), "wandb": lambda run: Broken(0, [])}
    monkeypatch.setattr(attached, "KINDS", kinds)
    options = config(tmp_path, "tensorboard", "wandb")
    with RunFolder.create(options) as run, pytest.raises(UserError) as caught:
        run.track(options, print)
    assert str(caught.value) == (
        "wandb cannot start (No key. Not here): run `wandb login`, set WANDB_MODE=offline, or leave it out of "
        "reporting.trackers"
    )
    assert first == ["start one", "finish"]


def test_off_by_default(tmp_path: Path) -> None:
    options = config(tmp_path)
    with RunFolder.create(options) as run:
        run.track(options, print)
        run.append_metrics(row(1, "length"))
        assert sorted(path.name for path in run.path.iterdir()) == [".lock", "config.json", "metrics.jsonl"]

"""A supervised run whose process is killed at random moments ends exactly as one that was left alone."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_sumrl.training.checkpoints import list_checkpoints
from tests.recipes.forked import Forked, ForkedRecipes

from .test_supervised_trainer import assert_same as assert_arrays_same
from .test_supervised_trainer import rows, sft_job

KILLS, STEPS = 5, 24


def record(run: Path) -> dict[str, Any]:
    """Everything that has to repeat: metrics, evaluations, checkpoints and exports."""
    files = [path for path in run.glob("**/*.safetensors") if "base" not in path.parts]
    return {
        "metrics": rows(run),
        "evaluation": {path.name: json.loads(path.read_text()) for path in (run / "evaluation").iterdir()},
        "state": [
            json.loads((path / "state.json").read_text())["state"]
            for path in list_checkpoints(run / "checkpoints")
        ],
        "arrays": {str(path.relative_to(run)): mx.load(str(path)) for path in files},
    }


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has loaded MLX")
def test_killed_again_and_again(tmp_path: Path) -> None:
    config = sft_job(
        tmp_path,
        {
            "policy": {"tuning": "lora", "lora": {"dropout": 0.1}},
            "sft": {"steps": STEPS},
            "evaluation": {"every": 6},
            "checkpoint": {"every": 3, "keep": 2},
            "optimizer": {"learning_rate": 2e-2},
        },
    )
    (tmp_path / "job.yaml").write_text(json.dumps(config.to_json()))
    moments = random.Random(0)
    with ForkedRecipes(tmp_path) as forked:

        def start(name: str) -> Forked:
            going_on = (tmp_path / name / "config.json").is_file()
            argv = ["--resume", name] if going_on else ["--config", "job.yaml", "--name", name]
            return forked.start("sft", *argv)

        process = start("whole")
        begun = time.monotonic()
        assert process.ended(120) == 0, process.said()
        seconds = time.monotonic() - begun
        whole = record(tmp_path / "whole")
        assert [row["step"] for row in whole["metrics"]] == [*range(STEPS + 1)]
        assert any(name.startswith("export/") for name in whole["arrays"])
        kills, met, runs, code = 0, 0, 0, None
        while kills < KILLS or code != 0:
            name = f"killed-{runs}"
            process = start(name)
            if kills < KILLS:
                time.sleep(moments.uniform(0.1, 0.6) * seconds)
                process.kill()
            code = process.ended(120)
            if code == 0:
                assert_same(record(tmp_path / name), whole)
                runs += 1
            else:
                assert code == -signal.SIGKILL, process.said()
                kills += 1
                met += bool(list_checkpoints(tmp_path / name / "checkpoints"))
    assert met >= KILLS // 2, "some of the kills have to meet a run that has something to lose"


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Bit for bit."""
    assert one["arrays"].keys() == other["arrays"].keys()
    for name in one["arrays"]:
        assert_arrays_same(one["arrays"][name], other["arrays"][name])
    for part in ("metrics", "evaluation", "state"):
        assert one[part] == other[part]

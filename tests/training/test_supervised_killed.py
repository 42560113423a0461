"""A supervised run whose process is killed at random moments ends exactly as one that was left alone."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_sumrl.training.checkpoints import list_checkpoints

from .test_supervised_trainer import assert_same as assert_arrays_same
from .test_supervised_trainer import rows, sft_job

ROOT = Path(__file__).parents[2]
KILLS, STEPS = 5, 24
PROGRAM = """
import os, sys
import recipes.sft, mlx_sumrl.training.supervised_trainer, transformers, mlx_lm.models.qwen2

for line in sys.stdin:
    # Loading Python takes longer than all the rest. Nothing of MLX has run before the fork.
    process = os.fork()
    if process == 0:
        sys.stdout.write(f"{os.getpid()}\\n")
        sys.stdout.flush()
        os.dup2(2, 1)
        recipes.sft.main(line.split())
        os._exit(0)
    _, status = os.waitpid(process, 0)
    print(f"ended {status}", flush=True)
"""


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
    parent = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdin is not None
    assert parent.stdout is not None

    def start(name: str) -> int:
        folder = tmp_path / name
        going_on = (folder / "config.json").is_file()
        command = (
            ["--resume", str(folder)]
            if going_on
            else ["--config", str(tmp_path / "job.yaml"), "--name", name]
        )
        print(*command, file=parent.stdin, flush=True)
        return int(parent.stdout.readline())

    def end() -> str:
        return parent.stdout.readline().strip()

    try:
        start("whole")
        begun = time.monotonic()
        assert end() == "ended 0"
        seconds = time.monotonic() - begun
        whole = record(tmp_path / "whole")
        assert [row["step"] for row in whole["metrics"]] == [*range(STEPS + 1)]
        assert any(name.startswith("export/") for name in whole["arrays"])
        kills, met, runs, ended = 0, 0, 0, ""
        while kills < KILLS or ended != "ended 0":
            name = f"killed-{runs}"
            process = start(name)
            if kills < KILLS:
                time.sleep(moments.uniform(0.1, 0.6) * seconds)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            ended = end()
            if ended == "ended 0":
                assert_same(record(tmp_path / name), whole)
                runs += 1
            else:
                assert ended == f"ended {int(signal.SIGKILL)}"
                kills += 1
                met += bool(list_checkpoints(tmp_path / name / "checkpoints"))
    finally:
        parent.kill()
        said = parent.communicate()[1]
        print(said)
    assert met >= KILLS // 2, "some of the kills have to meet a run that has something to lose"


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Bit for bit."""
    assert one["arrays"].keys() == other["arrays"].keys()
    for name in one["arrays"]:
        assert_arrays_same(one["arrays"][name], other["arrays"][name])
    for part in ("metrics", "evaluation", "state"):
        assert one[part] == other[part]

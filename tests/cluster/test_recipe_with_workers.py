"""`recipes.grpo_staged --cluster nodes.yaml`: with one worker and nothing stale it is the local run, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import yaml

from benchmarks.simulated_worker import Behaviour
from benchmarks.simulated_workers import SimulatedWorkers
from cluster.fingerprint import model_fingerprint
from tests.cluster.running_worker import TOKEN, Worker
from tests.recipes.programs import SHARED, start, tiny_job, write_options

MODEL = SHARED / "models" / "summarizer-5m"
CLOCKS = ("time/", "memory/", "tokens_per_second", "cluster/")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.is_dir(), reason="the summariser of ../shared is not here"),
]


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(TOKEN)
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def worker(token_file: Path) -> Iterator[Worker]:
    found = Worker(
        *("--model", str(MODEL), "--engine", "mlx", "--dtype", "float32"),
        *("--token-file", str(token_file), "--work-dir", str(token_file.parent / "work")),
    )
    try:
        found.wait_for("ready", patience_s=120)
        yield found
    finally:
        found.close()


def job(tuning: str) -> dict[str, Any]:
    paid = [{"kind": "length"}, {"kind": "rougeL"}]
    return tiny_job(
        {
            "policy": {"tiny": None, "model": str(MODEL), "tuning": tuning},
            "sft": None,
            "optimizer": {"learning_rate": 1e-4},
            "data": {"grammar": {"train_posts": 40, "evaluation_posts": 2}},
            "stages": [
                {"name": "first", "steps": 2, "rewards": paid},
                {"name": "second", "steps": 2, "rewards": paid[::-1]},
            ],
        }
    )


def ran(folder: Path, name: str, *more: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    process = start("grpo_staged", "--config", "job.yaml", "--name", name, *more, folder=folder)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    run = folder / "runs" / name
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return rows, dict(mx.load(str(run / "export" / "model" / "model.safetensors")))


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_one_worker_and_nothing_stale_is_the_local_run(
    tuning: str, tmp_path: Path, worker: Worker, token_file: Path
) -> None:
    write_options(tmp_path, job(tuning))
    nodes = {
        "token_file": str(token_file),
        "workers": [f"http://127.0.0.1:{worker.port}"],
        "max_staleness": 0,
        "canary_tolerance": 1e-4,
    }
    (tmp_path / "nodes.yaml").write_text(yaml.safe_dump(nodes))
    local, weights = ran(tmp_path, "local")
    remote, found = ran(tmp_path, "remote", "--cluster", "nodes.yaml")
    assert [row["policy_version"] for row in remote] == [1, 2, 3, 4]
    for one, other in zip(local, remote, strict=True):
        assert {key: value for key, value in one.items() if not key.startswith(CLOCKS)} == {
            key: value for key, value in other.items() if not key.startswith(CLOCKS)
        }
        assert other["cluster/lost"] == other["groups/requeued"] == other["staleness/max"] == 0
    assert weights.keys() == found.keys()
    assert all(mx.array_equal(weights[name], found[name]).item() for name in weights)


def test_a_nodes_file_that_is_not_there(tmp_path: Path) -> None:
    write_options(tmp_path, job("lora"))
    process = start("grpo_staged", "--config", "job.yaml", "--cluster", "absent.yaml", folder=tmp_path)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "absent.yaml" in said


def test_a_worker_that_cannot_draw_as_the_last_stage_will_ask_ends_it_before_it_begins(
    tmp_path: Path,
) -> None:
    """Simulated, as vllm-metal is: its log-probabilities are those at temperature 1."""
    options = job("lora")
    options["stages"][1]["temperature"] = 0.3
    write_options(tmp_path, options)
    raw = Behaviour(filters=False, fingerprint=model_fingerprint(MODEL))
    with SimulatedWorkers(raw) as simulated:
        (tmp_path / "nodes.yaml").write_text(yaml.safe_dump({"workers": simulated.urls}))
        process = start("grpo_staged", "--config", "job.yaml", "--cluster", "nodes.yaml", folder=tmp_path)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert "is asked to draw at temperature 0.3" in said
    assert "--engine mlx" in said
    assert not (tmp_path / "runs" / "job" / "metrics.jsonl").exists()

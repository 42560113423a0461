"""`recipes.grpo_staged --cluster` over two workers with a real vLLM each: plain runs, and one that all befalls.

Needs ``make vllm`` and ../shared; $VLLM_ENV names another environment.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.proxy import Proxy
from tests.cluster.running_worker import TOKEN, Worker, until
from tests.cluster.test_real_vllm import MODEL, START_S, VLLM, engine_of
from tests.recipes.programs import SHARED, start, tiny_job, write_options

ONE_PROCESS = {"OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
ONE_PROCESS_ARGUMENTS = ("--engine-arguments=--distributed-executor-backend uni",)
"""An engine without a process for its model alone (test_real_vllm has it as it comes): the two would wait for each
other busily. With six engines started here and two at work on two cores it takes a third less of them."""
BACK_S = 120.0
"""From an engine's first healthy answer to its worker's serving the current version: a few seconds on a quiet machine;
`back` prints how many."""
STEPS = int(os.environ.get("CLUSTER_STEPS", "6"))
"""Of the runs in which nothing happens; 30 were tried by hand."""
STOPPED_S = float(os.environ.get("CLUSTER_STOPPED_S", "5"))
"""How long a worker is held; a minute was tried by hand."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not VLLM.is_file(), reason=f"no vLLM at {VLLM.parent.parent.name}; `make vllm` makes one"
    ),
    pytest.mark.skipif(not MODEL.is_dir(), reason="the summariser of ../shared is not here"),
]


class RealWorker:
    """A worker over a real vLLM that can be started again where it was."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        token = folder / "token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        self.arguments = (
            *("--model", str(MODEL), "--engine", "vllm", "--vllm", str(VLLM), "--dtype", "float32"),
            *("--max-model-len", "512", "--token-file", str(token), "--work-dir", str(folder / "work")),
            *ONE_PROCESS_ARGUMENTS,
        )
        self.token_file = token
        self.worker = Worker(*self.arguments, env=ONE_PROCESS)
        self.port = self.worker.port

    def again(self) -> None:
        """Another process takes the place of a dead one; nothing is waited for but its port."""
        self.worker.http.close()
        self.worker = Worker(*self.arguments, "--listen", f"127.0.0.1:{self.port}", env=ONE_PROCESS)

    def kill(self) -> None:
        self.worker.process.kill()
        self.worker.process.wait()

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RealWorker]]:
    folder = tmp_path_factory.mktemp("workers")
    found = [RealWorker(folder / name) for name in ("a", "b")]
    try:
        for one in found:
            one.worker.wait_for("ready", patience_s=START_S)
        yield found
    finally:
        for one in found:
            one.worker.close()


def job(tuning: str, steps: int) -> dict[str, Any]:
    """Real dialogues, short completions: a step takes a second or two, most of it the workers'."""
    paid = [{"kind": "length"}, {"kind": "repetition"}]
    return tiny_job(
        {
            "policy": {"tiny": None, "model": str(MODEL), "tuning": tuning},
            "sft": None,
            "optimizer": {"learning_rate": 1e-3 if tuning == "lora" else 1e-4},
            "data": {
                "grammar": None,
                "train": str(SHARED / "data" / "dialogsum.train.jsonl"),
                "train_rows": 200,
                "document_column": "dialogue",
                "instruction": "Summarize the conversation.\n\n{document}",
                "max_prompt_tokens": 128,
            },
            "length": {"target": 24, "tolerance": 3},
            "sampling": {"max_tokens": 40},
            "grpo": {"prompts_per_step": 4, "group_size": 4, "loss": "dapo"},
            "checkpoint": {"every": 3},
            "stages": [
                {"name": "length", "steps": steps // 2, "rewards": paid[:1]},
                {"name": "quality", "steps": steps - steps // 2, "rewards": paid},
            ],
        }
    )


def nodes(folder: Path, token_file: Path, urls: list[str], **options: Any) -> None:
    content = {"token_file": str(token_file), "workers": urls, "canary_tolerance": 1e-4, **options}
    (folder / "nodes.yaml").write_text(yaml.safe_dump(content))


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's metrics so far."""
    path = folder / "runs" / "job" / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def check_steps(rows: list[dict[str, Any]]) -> None:
    """Every step whole, in order, from no older a version than allowed, by the policy that its version names."""
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    for row in rows:
        assert row["cluster/lost"] == 0
        assert row["staleness/max"] <= 1
        assert 0 <= row["staleness/mean"] <= row["staleness/max"]
        assert row["policy_version"] == row["step"]
        if "ratio/mean" in row and row["staleness/max"] == 0:
            assert row["ratio/mean"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("staleness", [0, 1])
def test_a_run_of_two_stages(tuning: str, staleness: int, tmp_path: Path, workers: list[RealWorker]) -> None:
    steps = 4 if staleness == 0 else STEPS
    write_options(tmp_path, job(tuning, steps))
    urls = [f"http://{one.name}" for one in workers]
    nodes(tmp_path, workers[0].token_file, urls, max_staleness=staleness)
    program = start("grpo_staged", "--config", "job.yaml", "--cluster", "nodes.yaml", folder=tmp_path)
    said, _ = program.communicate(timeout=600)
    assert program.returncode == 0, said
    rows = steps_of(tmp_path)
    assert len(rows) == steps
    check_steps(rows)
    assert rows[0]["staleness/max"] == 0
    # The second step's groups were asked for before there was a version 1.
    assert rows[1]["staleness/max"] == rows[1]["staleness/mean"] == staleness
    assert all(row["groups/requeued"] == 0 for row in rows)
    assert all(row[f"cluster/{one.name}/failures"] == 0 for row in rows for one in workers)


def test_all_that_befalls_a_cluster(tmp_path: Path, workers: list[RealWorker]) -> None:
    first, second = workers
    write_options(tmp_path, job("full", 10_000))
    with Proxy(f"http://{second.name}") as proxy:
        options = {"wait_for_workers_s": 3.0, "heartbeat_s": 1.0, "connect_timeout_s": 2.0}
        urls = [f"http://{first.name}", {"url": proxy.url, "name": "second"}]
        nodes(tmp_path, first.token_file, urls, request_timeout_s=60.0, **options)  # type: ignore[arg-type]
        program = start("grpo_staged", "--config", "job.yaml", "--cluster", "nodes.yaml", folder=tmp_path)
        try:
            go_on = going(program, tmp_path)
            go_on(3)
            first.kill()  # in the middle of whatever it does; its engine goes with it
            first.again()
            go_on(3)
            proxy.set("delay")
            go_on(2)
            proxy.set("pass")
            healthy_and_current(first, tmp_path, first.name)
            proxy.set("cut")
            go_on(2)
            proxy.set("pass")
            back(tmp_path, "second")
            second.worker.process.send_signal(signal.SIGSTOP)
            until_time = time.monotonic() + STOPPED_S
            while time.monotonic() < until_time:
                go_on(1)
            second.worker.process.send_signal(signal.SIGCONT)
            back(tmp_path, "second")
            restarts = second.worker.get("/health")["restarts"]
            os.kill(engine_of(second.worker)[0], signal.SIGKILL)
            go_on(2)
            second.worker.wait_for("ready", restarts + 1, START_S)
            back(tmp_path, "second")
            first.kill()
            second.kill()
            said, _ = program.communicate(timeout=120)
        except BaseException:
            program.kill()
            print(program.communicate()[0])  # shown beside the failure
            raise
        assert program.returncode == 2, said
        assert "--resume" in said
    rows = steps_of(tmp_path)
    check_steps(rows)
    saved = sorted(path.name for path in (tmp_path / "runs" / "job" / "checkpoints").iterdir())
    assert saved[-1] == f"step-{len(rows):06d}"

    first.again()
    nodes(tmp_path, first.token_file, [f"http://{first.name}"], wait_for_workers_s=START_S)
    command = ("--resume", "runs/job", "--cluster", "nodes.yaml")
    program = start("grpo_staged", *command, folder=tmp_path)
    try:
        until(lambda: len(steps_of(tmp_path)) >= len(rows) + 3, "three more steps", START_S)
        program.send_signal(signal.SIGINT)
        said, _ = program.communicate(timeout=120)
    finally:
        program.kill()
    assert f"going on after step {len(rows)}" in said
    check_steps(steps_of(tmp_path))


def going(program: subprocess.Popen[str], folder: Path) -> Callable[[int], None]:
    """``go_on(n)``: n more steps from now."""

    def go_on(more: int) -> None:
        aim = len(steps_of(folder)) + more

        def there() -> bool:
            assert program.poll() is None, program.communicate()[0]
            return len(steps_of(folder)) >= aim

        until(there, f"step {aim}", 120.0)

    return go_on


def back(folder: Path, name: str) -> None:
    """The trainer samples from this worker again, with the version that it publishes."""

    def there() -> bool:
        last = steps_of(folder)[-1]
        # What it had when the step's groups had come; the step then made a version more, and one may be on its way.
        return bool(last[f"cluster/{name}/version"] >= last["policy_version"] - 2)

    began = time.monotonic()
    until(there, f"{name} with the current version", BACK_S)
    print(f"{name} is back after {time.monotonic() - began:.1f} s")


def healthy_and_current(one: RealWorker, folder: Path, name: str) -> None:
    """From the engine's first healthy answer on the clock runs."""
    until(
        lambda: one.worker.get("/health")["state"] == "ready",
        "a healthy engine",
        START_S,
    )
    back(folder, name)

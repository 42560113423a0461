"""From nodes.yaml alone: the launcher starts a real worker, the recipe trains through it, the launcher stops it.

Through a real sshd where there is one, else through a simulated ssh.
"""

from __future__ import annotations

import getpass
import json
import socket
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from cluster.launch import main
from tests.cluster.remote import ROOT, SSHD, real_sshd, simulated_ssh
from tests.cluster.running_worker import TOKEN, alive, until
from tests.recipes.programs import SHARED, start, tiny_job, write_options

MODEL = SHARED / "models" / "summarizer-5m"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.is_dir(), reason="the summariser of ../shared is not here"),
    pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks for processes in /proc"),
]


def test_up_train_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    over_there = tmp_path / "over there"
    over_there.mkdir()
    for part in ("cluster", "mlx_sumrl"):
        (over_there / part).symlink_to(ROOT / part)
    token = over_there / "token"
    token.touch(0o600)
    token.write_text(TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        nullcontext(simulated_ssh(tmp_path / "ssh"))
        if SSHD is None
        else real_sshd(tmp_path / "ssh") as remote
    ):
        host = {
            "host": "127.0.0.1",
            "user": getpass.getuser(),
            "port": remote.port,
            "directory": str(over_there),
            "python": sys.executable,
            "engine": "mlx",
            "model": str(MODEL),
            "listen": f"127.0.0.1:{port}",
            "token_file": "token",
            "options": ["--dtype", "float32"],
            "free_gb": 0.001,
        }
        nodes = tmp_path / "nodes.yaml"
        nodes.write_text(yaml.safe_dump({"token_file": str(token), "max_staleness": 0, "hosts": [host]}))
        write_options(
            tmp_path,
            tiny_job(
                {
                    "policy": {"tiny": None, "model": str(MODEL), "tuning": "lora"},
                    "sft": None,
                    "data": {"grammar": {"train_posts": 8, "evaluation_posts": 1}},
                    "stages": [{"name": "only", "steps": 2, "rewards": [{"kind": "length"}]}],
                }
            ),
        )
        assert main(["up", str(nodes), *remote.arguments]) == 0, capsys.readouterr()
        pid = int((over_there / ".cluster" / f"worker-{port}" / "pid").read_text().split()[0])
        try:
            process = start("grpo_staged", "--config", "job.yaml", "--cluster", "nodes.yaml", folder=tmp_path)
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said
            engines = children(pid)
            assert engines
        finally:
            assert main(["down", str(nodes), *remote.arguments]) == 0, capsys.readouterr()
    rows = [
        json.loads(line) for line in (tmp_path / "runs" / "job" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["staleness/max"] for row in rows] == [0, 0]
    assert all(row["cluster/lost"] == row["groups/requeued"] == 0 for row in rows)
    until(lambda: not any(alive(one) for one in (pid, *engines)), "the end of the worker and its engine")


def children(pid: int) -> list[int]:
    """Of a process, and theirs."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == pid:
                found += [int(entry.name), *children(int(entry.name))]
    return found

"""The engine's process, started as a worker starts it, and a client that speaks to it over real HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from mlx_sumrl.rollouts.types import Group, Sampling

ROOT = Path(__file__).parents[2]


def start(model: Path | str, *options: str, listen: str = "127.0.0.1:0") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mlx_sumrl.rollouts.serve", "--model", str(model), "--listen", listen]
    return subprocess.Popen(
        [*command, *options],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@dataclass
class Served:
    """A process that is ready."""

    process: subprocess.Popen[str]
    http: httpx.Client

    def load(self, kind: str, path: Path | None = None) -> float:
        answer = self.http.post("/load", json={"kind": kind, "path": None if path is None else str(path)})
        assert answer.status_code == 200, answer.text
        return float(answer.json()["seconds"])

    def generate(self, **body: Any) -> Any:
        answer = self.http.post("/generate", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["groups"]

    def score(self, token_ids: Sequence[int]) -> list[float]:
        answer = self.http.post("/score", json={"token_ids": list(token_ids)})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["logprobs"])


@contextmanager
def served(model: Path | str, *options: str) -> Iterator[Served]:
    """A server on a port of its own, ready, and gone afterwards."""
    process = start(model, *options)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        first, second = process.stdout.readline(), process.stdout.readline()
        assert second == "ready\n", process.stderr.read()
        address = first.removeprefix("listening on ").strip()
        with httpx.Client(base_url=f"http://{address}", timeout=120) as http:
            yield Served(process, http)
    finally:
        process.kill()
        process.communicate()


def body_of(prompts: Sequence[Sequence[int]], size: int, sampling: Sampling, seed: int, stops: Any) -> Any:
    return {
        "prompts": [list(prompt) for prompt in prompts],
        "group_size": size,
        "sampling": asdict(sampling),
        "seed": seed,
        "stop_ids": sorted(stops),
    }


def as_answered(groups: Sequence[Group]) -> list[Any]:
    """Groups of a local sampler as the route answers them, floats as they are."""
    return [
        [
            {"token_ids": list(c.token_ids), "logprobs": list(c.logprobs), "finish_reason": c.finish_reason}
            for c in group.completions
        ]
        for group in groups
    ]

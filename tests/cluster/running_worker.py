"""A worker as a program of its own, and what a trainer would do with it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-that-is-for-tests-only-0123456789"
RANK = 4
PATIENCE_S = 30.0
"""An event that has not come by then never will; nothing is measured by it."""


def whole_answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of the one answer that is due on a connection, in however many pieces it comes."""
    with HTTPResponse(connection) as answer:
        answer.begin()
        return answer.status, answer.read()


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    """A file's bytes, written by hand: dtype, shape and data of each tensor."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values())


def floats(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def full_file(number: float) -> bytes:
    """Whole weights of the simulated model."""
    return safetensors({"model.w.weight": ("F32", [2], floats(number, 0.0))})


def adapter_files(number: float) -> dict[str, bytes]:
    """An adapter of the simulated model; its first float is the number."""
    matrices = {
        f"base_model.model.model.w.lora_{side}.weight": ("F32", shape, floats(number, *[0.0] * 7))
        for side, shape in (("A", [RANK, 2]), ("B", [2, RANK]))
    }
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["w"]}
    return {
        "adapter_model.safetensors": safetensors(matrices),
        "adapter_config.json": json.dumps(config).encode(),
    }


def write_simulated_model(folder: Path, number: float = 1.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(full_file(number))
    (folder / "config.json").write_text(json.dumps({"model_type": "simulated", "vocab_size": 1000}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def write_simulated_vllm(folder: Path) -> Path:
    program = folder / "vllm"
    script = Path(__file__).with_name("simulated_vllm.py")
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S {script} "$@"\n')
    program.chmod(0o755)
    return program


def until(there: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """The first true answer; polled, for what gives no event."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        found = there()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {patience_s:.0f} s")


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


class Worker:
    """A running ``python -m cluster.worker``."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cluster.worker", "--listen", "127.0.0.1:0", *arguments],
            env={**os.environ, "PYTHONPATH": path, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        self._port = threading.Event()
        self.port = 0
        threading.Thread(target=self._listen, daemon=True).start()
        if not self._port.wait(PATIENCE_S) or not self.port:
            self.process.kill()
            raise AssertionError("the worker did not start: " + "".join(self.said))
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=httpx.Timeout(120),
        )

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            found = re.search(r"listening on \S+:(\d+),", line)
            if found:
                self.port = int(found[1])
                self._port.set()
        self._port.set()

    def get(self, route: str) -> Any:
        return self.http.get(f"/v1{route}").json()

    def post(self, route: str, content: Any = None) -> httpx.Response:
        return self.http.post(f"/v1{route}", json=content)

    def wait_for(self, state: str, restarts: int = 0, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        def there() -> Any:
            health = self.get("/health")
            return health if health["state"] == state and health["restarts"] >= restarts else None

        found: dict[str, Any] = until(there, f"{state} after {restarts} restarts", patience_s)
        return found

    def publish(
        self, version: int, files: dict[str, bytes], kind: str = "adapter", **more: Any
    ) -> httpx.Response:
        """Announce, send, complete; the last answer, or the first that is not 200."""
        manifest = {
            **more,
            "kind": kind,
            "files": {
                name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                for name, data in files.items()
            },
        }
        answer = self.post(f"/weights/{version}", manifest)
        for name in answer.json().get("missing", ()):
            answer = self.http.put(f"/v1/weights/{version}/{name}", content=files[name])
        return self.post(f"/weights/{version}/complete") if answer.status_code == 200 else answer

    def activate(self, version: int, abort_after_s: float = 60.0) -> httpx.Response:
        return self.post("/activate", {"version": version, "abort_after_s": abort_after_s})

    def generate(self, *prompts: list[int], **changes: Any) -> httpx.Response:
        request = {
            "request_id": "one",
            "prompts": prompts,
            "group_size": 2,
            "draw": {"max_tokens": 4},
            "seed": 7,
            "stop_ids": [2],
        }
        return self.post("/generate", {**request, **changes})

    def sampled(self) -> tuple[int, float]:
        """The version that an answer carries, and the number of the simulated weights that gave it."""
        reply = self.generate([5, 6]).json()
        return reply["policy_version"], -reply["groups"][0]["completions"][0]["logprobs"][0]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
        self.http.close()


class Simulation:
    """A worker over a simulated vLLM."""

    def __init__(self, folder: Path, *arguments: str, kind: str = "vllm", wait: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.model = write_simulated_model(folder / "model")
        token_file = folder / "token"
        token_file.write_text(TOKEN + "\n")
        token_file.chmod(0o600)
        self.worker = Worker(
            *("--model", str(self.model), "--engine", kind, "--vllm", str(write_simulated_vllm(folder))),
            *("--token-file", str(token_file), "--work-dir", str(folder / "work")),
            *arguments,
            env={"SIMULATED_FOLDER": str(folder)},
        )
        if wait:
            self.worker.wait_for("ready")

    def events(self, kind: str) -> list[dict[str, Any]]:
        path = self.folder / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    @property
    def engine(self) -> dict[str, Any]:
        """The engine that was started last."""
        return self.events("start")[-1]

    def release(self) -> None:
        httpx.post(f"http://127.0.0.1:{self.engine['port']}/release")


@contextlib.contextmanager
def simulation(folder: Path, *arguments: str, kind: str = "vllm", wait: bool = True) -> Iterator[Simulation]:
    found = Simulation(folder, *arguments, kind=kind, wait=wait)
    try:
        yield found
    finally:
        found.worker.close()

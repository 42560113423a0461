"""What nobody may do to a worker: without the token, with a wrong one, and with the right one too."""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.bearer import WRONG_LOGINS
from cluster.front_door import BodyLimits
from cluster.wire import Problem
from cluster.worker import main
from tests.cluster.running_worker import (
    ROOT,
    TOKEN,
    Simulation,
    adapter_files,
    full_file,
    simulation,
    whole_answer,
    write_simulated_model,
)

ROUTES = [
    *(("GET", "/v1/info"), ("GET", "/v1/health"), ("GET", "/v1/metrics")),
    *(("POST", "/v1/generate"), ("POST", "/v1/score"), ("POST", "/v1/activate")),
    *(("POST", "/v1/weights/1"), ("PUT", "/v1/weights/1/a.json"), ("POST", "/v1/weights/1/complete")),
    *(("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/health"), ("DELETE", "/v1/info")),
]
"""All of wire.py's, and some that are not there."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    with simulation(tmp_path_factory.mktemp("shared")) as found:
        found.worker.publish(1, adapter_files(3.0))
        found.worker.activate(1)
        yield found


@pytest.fixture
def simulated(shared: Simulation) -> Iterator[Simulation]:
    """After each test the worker lives, samples what it sampled, and has said its token to nobody."""
    yield shared
    assert shared.worker.process.poll() is None
    assert shared.worker.sampled() == (1, 4.0)
    assert shared.worker.get("/info")["holds"] == [0, 1]
    assert TOKEN not in "".join(shared.worker.said)
    assert TOKEN not in (shared.folder / "work" / "engine.log").read_text()


def stranger(simulated: Simulation, **headers: str) -> httpx.Client:
    return httpx.Client(base_url=simulated.worker.http.base_url, headers=headers, timeout=30)


def is_problem(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    return Problem.model_validate_json(answer.content).error


@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_nothing_is_said_without_the_token(simulated: Simulation, method: str, route: str) -> None:
    with stranger(simulated) as client:
        answer = client.request(method, route, content=b"{}" if method != "GET" else None)
        assert "token" in is_problem(answer, 401)
        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_body_is_not_read_without_the_token(simulated: Simulation) -> None:
    """The answer comes though only the header was sent of what announces a body."""
    with socket.create_connection(("127.0.0.1", simulated.worker.port), timeout=30) as connection:
        connection.sendall(
            b"PUT /v1/weights/1/a.json HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
        )
        assert whole_answer(connection)[0] == 401


def test_guessing_is_held_off(tmp_path: Path) -> None:
    with simulation(tmp_path) as simulated:
        statuses = []
        with stranger(simulated) as client:
            for guess in range(WRONG_LOGINS + 2):
                answer = client.get("/v1/health", headers={"Authorization": f"Bearer wrong-{guess}"})
                statuses.append(answer.status_code)
            assert statuses == [401] * WRONG_LOGINS + [429] * 2
            assert int(answer.headers["retry-after"]) > 0
            assert "wrong-" not in answer.text
        assert simulated.worker.http.get("/v1/health").status_code == 429  # the same address
        assert simulated.worker.process.poll() is None
        assert not [line for line in simulated.worker.said if TOKEN in line or "wrong-" in line]


@pytest.mark.parametrize("method", ["basic", "query", "twice"])
def test_the_token_elsewhere_is_no_token(simulated: Simulation, method: str) -> None:
    with stranger(simulated) as client:
        if method == "basic":
            answer = client.get("/v1/health", auth=("x", TOKEN))
        elif method == "query":
            answer = client.get("/v1/health", params={"token": TOKEN, "authorization": f"Bearer {TOKEN}"})
        else:
            twice = [("Authorization", "Bearer wrong"), ("Authorization", f"Bearer {TOKEN}")]
            answer = client.get("/v1/health", headers=twice)
        is_problem(answer, 401)


def test_routes_that_are_not_there(simulated: Simulation) -> None:
    http = simulated.worker.http
    is_problem(http.get("/"), 404)
    for route in (
        "/docs",
        "/openapi.json",
        "/v1/openapi.json",
        "/v1/completions",
        "/collective_rpc",
        "/v1/info/",
    ):
        is_problem(http.get(route), 404)
    is_problem(http.delete("/v1/info"), 405)


@pytest.mark.parametrize(
    "name",
    [
        *("../evil.json", "..%2fevil.json", "..%2f..%2fevil.json", "%2e%2e%2fevil.json", "..\\evil.json"),
        *(
            ".evil.json",
            "evil.json%00",
            "evil.json%0a",
            "%2fetc%2fevil.json",
            "a%2fevil.json",
            "evil",
            "x" * 200,
        ),
    ],
)
def test_names_that_reach_elsewhere(simulated: Simulation, name: str) -> None:
    simulated.worker.post("/weights/7", manifest({"a.json": b"{}", "m.safetensors": full_file(1.0)}, "full"))
    with socket.create_connection(("127.0.0.1", simulated.worker.port), timeout=30) as connection:
        # By hand, since a client tidies a path up before it sends it.
        head = f"PUT /v1/weights/7/{name} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 2"
        connection.sendall(f"{head}\r\nConnection: close\r\n\r\n{{}}".encode())
        status, _ = whole_answer(connection)
    assert status in (404, 422)
    assert not list(simulated.folder.rglob("*evil*"))
    traversed = simulated.worker.post("/weights/8", manifest({f"../{name}": b"{}"}, "full"))
    is_problem(traversed, 422)


def manifest(files: dict[str, bytes], kind: str) -> dict[str, Any]:
    listed = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    }
    return {"kind": kind, "files": listed}


def test_a_body_over_the_limit(simulated: Simulation) -> None:
    most = BodyLimits().json_bytes
    with socket.create_connection(("127.0.0.1", simulated.worker.port), timeout=30) as connection:
        head = f"POST /v1/generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        connection.sendall(f"{head}Content-Length: {most + 1}\r\n\r\n".encode())
        assert whole_answer(connection)[0] == 413

    def chunks() -> Iterator[bytes]:  # without a length
        for _ in range(most // (1 << 20) + 1):
            yield b" " * (1 << 20)

    is_problem(simulated.worker.http.post("/v1/generate", content=chunks()), 413)


def test_a_file_over_its_manifest(simulated: Simulation) -> None:
    http = simulated.worker.http
    files = {"m.safetensors": full_file(1.0)}
    assert http.post("/v1/weights/9", json=manifest(files, "full")).status_code == 200
    longer = files["m.safetensors"] + b"x"
    is_problem(http.put("/v1/weights/9/m.safetensors", content=longer), 413)
    is_problem(http.put("/v1/weights/9/m.safetensors", content=iter([longer])), 413)
    is_problem(http.put("/v1/weights/9/m.safetensors", content=files["m.safetensors"][:-1]), 422)
    is_problem(http.post("/v1/weights/9/complete"), 409)
    huge = manifest(files, "full")
    huge["files"]["m.safetensors"]["bytes"] = 1 << 49
    is_problem(http.post("/v1/weights/10", json=huge), 413)


@pytest.mark.parametrize(
    ("name", "data", "status"),
    [
        ("pytorch_model.bin", pickle.dumps({"w": 1}), 422),
        ("model.safetensors", pickle.dumps({"w": 1}), 422),
        ("model.safetensors", full_file(1.0).replace(b'"shape": [2]', b'"shape": [9]'), 422),
        ("model.safetensors", (1 << 60).to_bytes(8, "little") + full_file(1.0)[8:], 422),
        ("model.safetensors", b"", 422),
    ],
)
def test_what_is_no_safetensors(simulated: Simulation, name: str, data: bytes, status: int) -> None:
    is_problem(simulated.worker.publish(11, {name: data}, "full"), status)
    is_problem(simulated.worker.activate(11), 404)


HARMFUL = {
    "no JSON": b"{",
    "deep": b"[" * 200_000,
    "a long number": b'{"seed": ' + b"9" * 10_000 + b"}",
    "NaN": b'{"request_id":"x","prompts":[[1]],"group_size":1,"draw":{"max_tokens":4,"temperature":NaN},'
    b'"seed":1,"stop_ids":[]}',
    "surrogate": b'{"request_id":"\\ud800","prompts":[[1]]}',
    "surrogate key": b'{"\\ud800": 1}',
    "not UTF-8": b'{"request_id": "\xff"}',
    "another type": b'"text"',
    "nothing": b"",
    "null": b"null",
}


@pytest.mark.parametrize("route", ["/generate", "/score", "/activate", "/weights/5"])
@pytest.mark.parametrize("harm", HARMFUL)
def test_harmful_json(simulated: Simulation, route: str, harm: str) -> None:
    answer = simulated.worker.http.post(
        f"/v1{route}", content=HARMFUL[harm], headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (400, 422), answer.text
    Problem.model_validate_json(answer.content)


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "99999999999999999999"])
def test_lengths_that_are_none(simulated: Simulation, length: str) -> None:
    with socket.create_connection(("127.0.0.1", simulated.worker.port), timeout=30) as connection:
        head = f"POST /v1/generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
        assert whole_answer(connection)[0] in (400, 413, 422)


def test_the_engine_is_not_given_the_token(simulated: Simulation) -> None:
    process = Path(f"/proc/{simulated.engine['pid']}")
    if not process.is_dir():
        pytest.skip("reads an environment in /proc")
    assert TOKEN.encode() not in (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
    assert "127.0.0.1" in simulated.engine["arguments"]
    own = Path(f"/proc/{simulated.worker.process.pid}")
    assert TOKEN.encode() not in (own / "cmdline").read_bytes()


def test_wrong_options_are_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = str(write_simulated_model(tmp_path / "model"))
    start = ("--model", model, "--engine", "mlx")

    def refused(*arguments: str) -> str:
        assert main(arguments) == 2
        return capsys.readouterr().err

    assert "--token-file" in refused(*start, "--listen", "0.0.0.0:0")
    assert "no folder" in refused("--model", "missing", "--engine", "mlx")
    assert "HOST:PORT" in refused(*start, "--listen", "8700")
    assert "float16" in refused(*start, "--dtype", "float16")
    assert "no program" in refused("--model", model, "--engine", "vllm", "--vllm", "missing")
    assert "missing" in refused(*start, "--token-file", "missing")
    (tmp_path / "model" / "tokenizer.json").unlink()
    assert "tokenizer.json" in refused(*start)
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert str(port) in refused(*start, "--listen", f"127.0.0.1:{port}")


def test_a_wrong_option_is_one_line_of_a_program_that_ends_with_2(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "cluster.worker", "--model", "missing", "--engine", "mlx"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: --model missing is no folder")
    assert ended.stderr.count("\n") == 1

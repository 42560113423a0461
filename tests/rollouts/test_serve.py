"""The engine's process over real HTTP: bit for bit what a sampler in this process draws, and what it refuses."""

from __future__ import annotations

import json
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import mlx.core as mx
import numpy as np
import pytest
from mlx_lm import load
from mlx_lm.utils import quantize_model, save_model

from mlx_sumrl.config import LoraConfig, PolicyConfig
from mlx_sumrl.policy.export import export_peft
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.logprobs import completion_logprobs, token_batch
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.policy.snapshot import write_snapshot
from mlx_sumrl.rollouts.engine import Engine, Load, Request
from mlx_sumrl.rollouts.local import LocalSampler
from mlx_sumrl.rollouts.serve import Job, _answer, main
from mlx_sumrl.rollouts.types import Sampling
from tests.families import random_prompts, randomize_adapters
from tests.rollouts.served import Served, as_answered, body_of, served

Folder = Callable[[str], Path]
PROMPTS = random_prompts([7, 2, 13, 5], seed=3)
IDS = [list(example.prompt_ids) for example in PROMPTS]
STOPS = frozenset({2, *range(40, 46)})
TEXT = [9, 8, 7, 100, 200, 30, 31, 32, 2, 5]
DRAWS = [
    Sampling(max_tokens=24),
    Sampling(temperature=0.7, top_p=0.9, top_k=20, max_tokens=12, min_tokens=3),
    Sampling(temperature=0.0, max_tokens=8),
]


@pytest.fixture(scope="module")
def float_server(family_folder: Folder) -> Iterator[Served]:
    """One server for the tests that leave it as they found it."""
    with served(family_folder("qwen2"), "--dtype", "float32") as server:
        yield server


def trained(folder: Path, tuning: str, dtype: str, **lora: Any) -> Policy:
    """A policy that is far from where it was loaded."""
    options = PolicyConfig(
        model=str(folder), tuning=tuning, dtype=dtype, lora=LoraConfig(**({"rank": 4, "alpha": 6.0} | lora))
    )
    policy = load_policy(options)
    if tuning == "full":
        generator = np.random.default_rng(3)
        policy.set_weights(
            {
                name: array + mx.array(0.05 * generator.standard_normal(array.shape)).astype(array.dtype)
                for name, array in policy.weights().items()
            }
        )
    else:
        randomize_adapters(policy)
    policy.stop_ids = STOPS
    return policy


def check_same(server: Served, policy: Policy, max_rows: int = 64) -> Any:
    """All draws, of which the first is returned."""
    sampler = LocalSampler(policy, max_rows)
    answers = []
    for seed, sampling in enumerate(DRAWS):
        answer = server.generate(**body_of(IDS, 5, sampling, seed, STOPS))
        assert answer == as_answered(sampler.sample(PROMPTS, 5, sampling, seed))
        answers.append(answer)
    return answers[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen2", "lfm2"])
def test_bit_for_bit_with_every_kind_of_weights(
    family: str, dtype: str, family_folder: Folder, tmp_path: Path
) -> None:
    folder = family_folder(family)
    base = load_policy(PolicyConfig(model=str(folder), tuning="full", dtype=dtype))
    base.stop_ids = STOPS
    adapted, full = trained(folder, "lora", dtype), trained(folder, "full", dtype)
    partly = trained(folder, "lora", dtype, layers=2, rank=3)
    assert write_snapshot(adapted, tmp_path / "adapted") == "adapter"
    assert write_snapshot(partly, tmp_path / "partly") == "adapter"
    assert write_snapshot(full, tmp_path / "full") == "full"
    with served(folder, "--dtype", dtype) as server:
        seen = [check_same(server, base)]
        for kind, name, policy in [
            ("adapter", "adapted", adapted),
            ("full", "full", full),
            ("adapter", "partly", partly),  # on the base again, not on the full weights before it
            ("full", "full", full),
            ("none", None, base),
            ("adapter", "adapted", adapted),
            ("none", None, base),
        ]:
            server.load(kind, tmp_path / name if name else None)
            seen.append(check_same(server, policy))
    # The versions do differ, or all of this shows nothing.
    assert len({str(answer) for answer in seen}) == 4


def test_a_quantised_base_takes_adapters(family_folder: Folder, tmp_path: Path) -> None:
    folder = tmp_path / "quantised"
    model, _ = load(str(family_folder("llama-untied")))
    config = json.loads((family_folder("llama-untied") / "config.json").read_text())
    model, config = quantize_model(model, config, group_size=32, bits=8)
    save_model(folder, model)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes((family_folder("llama-untied") / name).read_bytes())
    policy = trained(folder, "lora", "float32")
    write_snapshot(policy, tmp_path / "adapter")
    with served(folder, "--dtype", "float32") as server:
        plain = server.score(TEXT)
        server.load("adapter", tmp_path / "adapter")
        check_same(server, policy)
        assert server.score(TEXT) != plain
        server.load("none")
        assert server.score(TEXT) == plain
        answer = server.http.post("/load", json={"kind": "full", "path": str(family_folder("llama-untied"))})
        assert (answer.status_code, "is quantised" in answer.text) == (422, True)


def test_options_reach_the_sampler(family_folder: Folder) -> None:
    folder = family_folder("llama")
    policy = load_policy(PolicyConfig(model=str(folder), tuning="full", dtype="float32"))
    policy.stop_ids = STOPS
    with served(folder, "--dtype", "float32", "--max-rows", "3") as server:
        check_same(server, policy, max_rows=3)


def test_scores_are_those_of_teacher_forcing(float_server: Served, family_folder: Folder) -> None:
    policy = load_policy(PolicyConfig(model=str(family_folder("qwen2")), tuning="full", dtype="float32"))
    generator = np.random.default_rng(1)
    for length in (2, 3, 60, 128):
        text = generator.integers(0, policy.vocabulary, size=length).tolist()
        truth = np.array(completion_logprobs(policy.model, token_batch([text[:1]], [text[1:]])))[0]
        scores = float_server.score(text)
        assert len(scores) == length - 1
        np.testing.assert_allclose(scores, truth, atol=1e-5)


def test_health(float_server: Served) -> None:
    health = float_server.http.get("/health").json()
    assert health["ready"] is True
    assert health["max_tokens"] == 128
    assert health["versions"]["mlx"].startswith("0.32")
    assert {"python", "mlx-lm", "mlx_sumrl"} <= health["versions"].keys()


USUAL = body_of(IDS, 2, Sampling(max_tokens=4), 0, STOPS)


@pytest.mark.parametrize(
    ("route", "body", "status", "said"),
    [
        ("/generate", {}, 422, "prompts"),
        ("/generate", {**USUAL, "more": 1}, 422, "more"),
        ("/generate", {**USUAL, "prompts": []}, 422, "prompts"),
        ("/generate", {**USUAL, "prompts": [[1], []]}, 422, "prompts.1"),
        ("/generate", {**USUAL, "prompts": [[1.5]]}, 422, "prompts.0.0"),
        ("/generate", {**USUAL, "prompts": [[-1]]}, 422, "prompts.0.0"),
        ("/generate", {**USUAL, "prompts": [[10**6]]}, 422, "vocabulary"),
        ("/generate", {**USUAL, "stop_ids": [10**6]}, 422, "vocabulary"),
        ("/generate", {**USUAL, "prompts": [[5] * 125]}, 422, "129 tokens"),
        ("/generate", {**USUAL, "group_size": 0}, 422, "group_size"),
        ("/generate", {**USUAL, "seed": -1}, 422, "seed"),
        ("/generate", {**USUAL, "sampling": {**USUAL["sampling"], "top_p": 0}}, 422, "top_p"),
        ("/score", {"token_ids": [1]}, 422, "token_ids"),
        ("/score", {"token_ids": [1] * 129}, 422, "129 tokens"),
        ("/load", {"kind": "delta", "path": "."}, 422, "kind"),
        ("/load", {"kind": "full"}, 422, "needs a path"),
        ("/load", {"kind": "none", "path": "."}, 422, "no path"),
        ("/load", {"kind": "adapter", "path": "/nowhere"}, 422, "not a PEFT adapter folder"),
        ("/load", {"kind": "full", "path": "/nowhere"}, 422, "no model"),
        ("/elsewhere", {}, 404, "/elsewhere"),
        ("/health", {}, 405, "/health"),
    ],
)
def test_what_is_refused(route: str, body: Any, status: int, said: str, float_server: Served) -> None:
    answer = float_server.http.post(route, json=body)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]
    assert float_server.http.get("/health").json()["ready"] is True


def test_bodies_that_are_none(float_server: Served) -> None:
    http = float_server.http
    json_type = {"Content-Type": "application/json"}
    assert http.post("/score", content=b"{", headers=json_type).status_code == 422
    assert http.post("/score", content=b"\xff", headers=json_type).status_code == 422
    assert http.post("/score", content=b'{"token_ids": [1, 2]}').status_code == 415
    assert http.post("/score", content=iter([b"{}"]), headers=json_type).status_code == 411
    assert http.get("/score").status_code == 405
    assert http.get("/nothing").status_code == 404
    with socket.create_connection(("127.0.0.1", http.base_url.port or 0)) as connection:
        connection.sendall(f"POST /score HTTP/1.1\r\nContent-Length: {2**40}\r\n\r\n".encode())
        assert connection.makefile("rb").readline().split()[1] == b"413"
    assert len(float_server.score(TEXT)) == len(TEXT) - 1


def test_stop_ids_are_those_of_the_request(float_server: Served) -> None:
    sampling = Sampling(max_tokens=20)
    for stops in ([], list(range(0, 300, 2))):
        for group in float_server.generate(**body_of(IDS, 3, sampling, 1, stops)):
            for row in group:
                ended = row["token_ids"][-1] in stops
                assert row["finish_reason"] == ("stop" if ended else "length")
                assert not set(row["token_ids"][:-1]) & set(stops)
                assert ended or len(row["token_ids"]) == 20


def test_refused_weights_leave_the_old_ones(family_folder: Folder, tmp_path: Path) -> None:
    folder = family_folder("qwen2")
    adapted = trained(folder, "lora", "float32")
    write_snapshot(adapted, tmp_path / "good")
    export_peft(trained(family_folder("llama"), "lora", "float32"), tmp_path / "other")
    cut = tmp_path / "cut"
    export_peft(adapted, cut)
    whole = (cut / "adapter_model.safetensors").read_bytes()
    (cut / "adapter_model.safetensors").write_bytes(whole[:-40])
    write_snapshot(trained(folder, "full", "float32"), tmp_path / "full")
    weights = (tmp_path / "full" / "model.safetensors").read_bytes()
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "model.safetensors").write_bytes(weights[:-1000])
    (tmp_path / "lies").mkdir()
    (tmp_path / "lies" / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + weights[8:])
    with served(folder, "--dtype", "float32") as server:
        server.load("adapter", tmp_path / "good")
        before = server.score(TEXT)
        for kind, name in [("adapter", "cut"), ("full", "lies"), ("full", "short"), ("adapter", "full")]:
            answer = server.http.post("/load", json={"kind": kind, "path": str(tmp_path / name)})
            assert answer.status_code == 422, (name, answer.text)
            if server.http.get("/health").json()["ready"]:
                assert server.score(TEXT) == before, name
            else:  # broke off in the middle: nothing is answered until other weights are in
                assert name == "short"
                assert server.http.post("/score", json={"token_ids": TEXT}).status_code == 503
                server.load("adapter", tmp_path / "good")
                assert server.score(TEXT) == before


def test_weights_that_are_not_finite_are_no_answer(family_folder: Folder, tmp_path: Path) -> None:
    policy = trained(family_folder("qwen2"), "lora", "float32")
    policy.set_weights({name: array * float("nan") for name, array in policy.weights().items()})
    write_snapshot(policy, tmp_path / "nan")
    with served(family_folder("qwen2"), "--dtype", "float32") as server:
        server.load("adapter", tmp_path / "nan")
        for route, body in (("/generate", USUAL), ("/score", {"token_ids": TEXT})):
            answer = server.http.post(route, json=body)
            assert (answer.status_code, "not finite" in answer.text) == (422, True)
        server.load("none")
        assert np.isfinite(server.score(TEXT)).all()


def test_requests_of_several_clients_are_answered_one_by_one(float_server: Served) -> None:
    bodies = [body_of(IDS, 2, Sampling(max_tokens=10), seed, STOPS) for seed in range(6)]
    alone = [float_server.generate(**body) for body in bodies]
    url = str(float_server.http.base_url)
    with ThreadPoolExecutor(6) as pool:
        together = list(
            pool.map(lambda body: httpx.post(f"{url}/generate", json=body, timeout=60).json(), bodies)
        )
    assert [answer["groups"] for answer in together] == alone


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number: signal.Signals, family_folder: Folder) -> None:
    with served(family_folder("qwen2")) as server:
        port = server.http.base_url.port
        server.process.send_signal(number)
        _, complaints = server.process.communicate(timeout=30)
        assert server.process.returncode == 0
        assert complaints == ""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_a_signal_ends_it_within_a_request(family_folder: Folder) -> None:
    with served(family_folder("qwen2"), "--dtype", "float32") as server:
        asked = json.dumps(body_of([[5, 6]] * 64, 64, Sampling(max_tokens=120), 0, [])).encode()
        head = f"POST /generate HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {len(asked)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.http.base_url.port)) as connection:
            connection.sendall(head.encode() + asked)
            heard = threading.Event()
            threading.Thread(target=lambda: (connection.recv(1), heard.set()), daemon=True).start()
            assert not heard.wait(0.5)  # it is at work: this takes half a minute
            server.process.terminate()
            server.process.communicate(timeout=20)
            assert server.process.returncode == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--listen", "0.0.0.0:8100"], "loopback only"),
        (["--listen", "192.168.1.5:8100"], "loopback only"),
        (["--listen", "8100"], "HOST:PORT"),
        (["--listen", "mac.local:8100"], "HOST:PORT"),
        (["--max-rows", "0"], "--max-rows 0"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--cache-bits", "8"], "cache_bits"),
    ],
)
def test_options_that_cannot_be(
    options: list[str], said: str, family_folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = {"--model": str(family_folder("qwen2")), "--listen": "127.0.0.1:0"}
    asked = usual | dict(zip(options[::2], options[1::2], strict=True))
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        assert main([word for pair in asked.items() for word in pair]) == 2
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
    complaint = capsys.readouterr().err
    assert complaint.startswith("error: ")
    assert said in complaint
    assert complaint.count("\n") == 1


def test_an_address_that_is_taken(family_folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["--model", str(family_folder("qwen2")), "--listen", listen]) == 2
    assert "cannot be listened on" in capsys.readouterr().err


def test_a_request_nobody_waits_for_is_not_begun() -> None:
    begun: list[Request] = []

    def work(engine: Engine, asked: Request) -> dict[str, Any]:
        begun.append(asked)
        return {}

    for stays in (True, False):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            if not stays:
                theirs.close()
            job = Job(work, Load(kind="none"), ours)
            _answer(job, NoEngine())
            assert (job.answer.exception() is None) == stays
    assert len(begun) == 1


class NoEngine(Engine):
    """Whole, and without a model."""

    def __init__(self) -> None:
        self.whole = True

"""A worker over the library's own sampler: bit for bit what a local sampler gives, whatever weights are active."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_sumrl.config import PolicyConfig
from mlx_sumrl.data.example import Example
from mlx_sumrl.policy.export import export_model, export_peft
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.logprobs import completion_logprobs, token_batch
from mlx_sumrl.policy.policy import Policy
from mlx_sumrl.rollouts.local import LocalSampler
from mlx_sumrl.rollouts.types import Sampling
from tests.cluster.running_worker import ROOT, TOKEN, Worker

MODEL = ROOT.parent / "shared" / "models" / "summarizer-5m"
PROMPTS = [[5, 100, 200, 300], [7, 1000, 33, 9, 10, 11]]
SEED, GROUP = 11, 3
SAMPLING = Sampling(max_tokens=24)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.is_dir(), reason="the summariser of ../shared is not here"),
    pytest.mark.skipif(
        importlib.util.find_spec("mlx_sumrl.rollouts.serve") is None,
        reason="there is no mlx_sumrl.rollouts.serve",
    ),
]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    folder = tmp_path_factory.mktemp("worker")
    token_file = folder / "token"
    token_file.write_text(TOKEN)
    token_file.chmod(0o600)
    found = Worker(
        *("--model", str(MODEL), "--engine", "mlx", "--dtype", "float32"),
        *("--token-file", str(token_file), "--work-dir", str(folder / "work")),
    )
    try:
        found.wait_for("ready", patience_s=120)
        yield found
    finally:
        found.close()


def policy_of(tuning: str, seed: int | None = None) -> Policy:
    policy = load_policy(
        PolicyConfig.model_validate({"model": str(MODEL), "tuning": tuning, "dtype": "float32"})
    )
    if seed is not None:
        mx.random.seed(seed)
        policy.set_weights(
            {name: array + 0.02 * mx.random.normal(array.shape) for name, array in policy.weights().items()}
        )
    return policy


def local(policy: Policy) -> list[list[tuple[tuple[int, ...], tuple[float, ...], str]]]:
    examples = [Example("x", tuple(prompt), prompt="", document="", reference="") for prompt in PROMPTS]
    groups = LocalSampler(policy).sample(examples, GROUP, SAMPLING, SEED)
    return [
        [(one.token_ids, one.logprobs, one.finish_reason) for one in group.completions] for group in groups
    ]


def remote(
    worker: Worker, policy: Policy, version: int
) -> list[list[tuple[tuple[int, ...], tuple[float, ...], str]]]:
    draw = {"max_tokens": SAMPLING.max_tokens}
    answer = worker.generate(
        *PROMPTS,
        group_size=GROUP,
        seed=SEED,
        draw=draw,
        stop_ids=sorted(policy.stop_ids),
        policy_version=version,
    )
    assert answer.status_code == 200, answer.text
    return [
        [
            (tuple(one["token_ids"]), tuple(one["logprobs"]), one["finish_reason"])
            for one in group["completions"]
        ]
        for group in answer.json()["groups"]
    ]


def made_active(worker: Worker, version: int, folder: Path, kind: str) -> None:
    files = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".safetensors")
    }
    assert worker.publish(version, files, kind).status_code == 200
    assert worker.activate(version).status_code == 200


def test_each_version_is_bit_for_bit_the_local_sampler_s(worker: Worker, tmp_path: Path) -> None:
    base = policy_of("full")
    assert worker.get("/info")["features"]["batch"] is True
    assert remote(worker, base, 0) == local(base)
    adapted, whole = policy_of("lora", 1), policy_of("full", 2)
    export_peft(adapted, tmp_path / "peft")
    export_model(whole, tmp_path / "whole")
    made_active(worker, 1, tmp_path / "peft", "adapter")
    assert remote(worker, adapted, 1) == local(adapted) != local(base)
    made_active(worker, 2, tmp_path / "whole", "full")
    assert remote(worker, whole, 2) == local(whole) != local(base)
    text = PROMPTS[1]
    batch = token_batch([text[:1]], [text[1:]])
    truth = completion_logprobs(whole.model, batch)[0].tolist()
    assert worker.post("/score", {"token_ids": text}).json()["logprobs"] == pytest.approx(truth, abs=1e-5)


def test_a_killed_engine_comes_back_with_the_active_version(worker: Worker, tmp_path: Path) -> None:
    adapted = policy_of("lora", 3)
    export_peft(adapted, tmp_path / "peft")
    made_active(worker, 5, tmp_path / "peft", "adapter")
    before = remote(worker, adapted, 5)
    stats = {
        int(path.parent.name): path.read_text().rpartition(")")[2].split()
        for path in Path("/proc").glob("[0-9]*/stat")
    }
    keepers = [pid for pid, fields in stats.items() if int(fields[1]) == worker.process.pid]
    (engine,) = [pid for pid, fields in stats.items() if int(fields[1]) in keepers]
    os.kill(engine, signal.SIGKILL)
    worker.wait_for("ready", 1, 120)
    assert remote(worker, adapted, 5) == before


def test_a_delta_is_rebuilt_and_sampled_from(worker: Worker, tmp_path: Path) -> None:
    delta = pytest.importorskip("cluster.delta")
    first, second = policy_of("full", 6), policy_of("full", 7)
    for number, policy in ((1, first), (2, second)):
        export_model(policy, tmp_path / str(number))
    made_active(worker, 11, tmp_path / "1", "full")
    summary = delta.make_patch(tmp_path / "1", tmp_path / "2", tmp_path / "patch")
    files = {path.name: path.read_bytes() for path in (tmp_path / "patch").iterdir()}
    assert worker.publish(12, files, "delta", base=11, fingerprint=summary.fingerprint).json()["complete"]
    assert worker.activate(12).status_code == 200
    assert remote(worker, second, 12) == local(second)
    damaged = {name: data[:-3] + b"xyz" for name, data in files.items()}
    assert worker.publish(13, damaged, "delta", base=11).status_code == 422
    assert worker.publish(13, files, "delta", base=12).status_code == 422
    assert worker.publish(13, files, "delta", base=4).status_code == 409

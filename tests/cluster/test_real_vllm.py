"""A worker over a real vLLM and the real summariser: ids, log-probabilities, adapters, whole weights, a crash.

The truth is computed by mlx in this process, from the same files and the same policy. Needs ``make vllm`` and
../shared; $VLLM_ENV names another environment.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import mlx.core as mx
import pytest

from mlx_sumrl.config import PolicyConfig
from mlx_sumrl.policy.export import export_model, export_peft
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.policy.logprobs import completion_logprobs, token_batch
from mlx_sumrl.policy.policy import Policy
from tests.cluster.running_worker import ROOT, TOKEN, Worker, until

MODEL = ROOT.parent / "shared" / "models" / "summarizer-5m"
VLLM = Path(os.environ.get("VLLM_ENV", ROOT / ".vllm")) / "bin" / "vllm"
START_S = 300.0
TOLERANCE = 1e-4
TEXT = [5, 100, 200, 300, 17, 45, 999, 1234, 88, 77]
PROMPTS = [TEXT, [7, 1000, 33], [400, 401, 402, 403, 404]]
STOP = 2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not VLLM.is_file(), reason=f"no vLLM at {VLLM.parent.parent.name}; `make vllm` makes one"
    ),
    pytest.mark.skipif(not MODEL.is_dir(), reason="the summariser of ../shared is not here"),
]


@dataclass
class Published:
    """What a trainer would send, and what its own model says."""

    files: dict[str, bytes]
    kind: str
    policy: Policy

    def logprobs(self, prompt: list[int], completion: list[int]) -> list[float]:
        batch = token_batch([prompt], [completion])
        return list(map(float, completion_logprobs(self.policy.model, batch)[0].tolist()))


def files_of(folder: Path, *names: str) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    folder = tmp_path_factory.mktemp("worker")
    token_file = folder / "token"
    token_file.write_text(TOKEN)
    token_file.chmod(0o600)
    found = Worker(
        *("--model", str(MODEL), "--engine", "vllm", "--vllm", str(VLLM), "--dtype", "float32"),
        *("--max-model-len", "512", "--token-file", str(token_file), "--work-dir", str(folder / "work")),
    )
    try:
        found.wait_for("ready", patience_s=START_S)
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def base() -> Published:
    return Published({}, "none", load_policy(PolicyConfig(model=str(MODEL), tuning="full", dtype="float32")))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Published]:
    found = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp("adapter")
        policy = load_policy(PolicyConfig(model=str(MODEL), tuning="lora", dtype="float32"))
        mx.random.seed(seed)
        policy.set_weights({name: moved(name, array, 0.05) for name, array in policy.weights().items()})
        export_peft(policy, folder / "peft")
        files = files_of(folder / "peft", "adapter_model.safetensors", "adapter_config.json")
        found.append(Published(files, "adapter", policy))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("whole")
    policy = load_policy(PolicyConfig(model=str(MODEL), tuning="full", dtype="float32"))
    mx.random.seed(3)
    policy.set_weights({name: moved("lora_b", array, 0.01) for name, array in policy.weights().items()})
    export_model(policy, folder / "model")
    return Published(files_of(folder / "model", "model.safetensors"), "full", policy)


def moved(name: str, array: mx.array, by: float) -> mx.array:
    """LoRA's B, which begins at 0, and whole weights, pushed far enough for every log-probability to differ."""
    return array + by * mx.random.normal(array.shape) if name.endswith("lora_b") else array


def largest(mine: list[float], theirs: list[float]) -> float:
    return max(abs(one - other) for one, other in zip(mine, theirs, strict=True))


def scored(worker: Worker) -> dict[str, Any]:
    answer = worker.post("/score", {"token_ids": TEXT})
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = answer.json()
    return reply


def made_active(worker: Worker, version: int, published: Published) -> None:
    assert worker.publish(version, published.files, published.kind).json()["complete"]
    assert worker.activate(version).json()["version"] == version


def test_it_says_what_it_can(worker: Worker) -> None:
    info = worker.get("/info")
    assert info["features"] == {
        "adapters": True,
        "full_weights": "in_place",
        "score": True,
        "filters": True,
        "batch": False,
    }
    assert info["max_tokens"] == 512
    assert info["versions"]["vllm"].startswith("0.")


def check_sampled(reply: dict[str, Any], truth: Published, version: int, group_size: int) -> float:
    """Ids, ends and log-probabilities of a reply to `PROMPTS`; the largest difference from mlx."""
    assert reply["policy_version"] == version
    worst = 0.0
    for prompt, group in zip(PROMPTS, reply["groups"], strict=True):
        assert len(group["completions"]) == group_size
        for one in group["completions"]:
            ids = one["token_ids"]
            assert (ids[-1] == STOP) == (one["finish_reason"] == "stop")
            assert STOP not in ids[:-1]
            assert len(ids) == 48 or one["finish_reason"] == "stop"
            worst = max(worst, largest(one["logprobs"], truth.logprobs(prompt, ids)))
    return worst


def sample(worker: Worker, **changes: Any) -> dict[str, Any]:
    answer = worker.generate(
        *PROMPTS, **{"group_size": 4, "draw": {"max_tokens": 48}, "stop_ids": [STOP], **changes}
    )
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = answer.json()
    return reply


def test_the_base_model_samples_as_mlx_says(worker: Worker, base: Published) -> None:
    assert worker.activate(0).json()["version"] == 0
    assert check_sampled(sample(worker), base, 0, 4) < TOLERANCE
    assert largest(scored(worker)["logprobs"], base.logprobs(TEXT[:1], TEXT[1:])) < TOLERANCE


def test_a_seed_gives_one_answer_and_another_seed_another(worker: Worker) -> None:
    once, again, other = sample(worker), sample(worker), sample(worker, seed=8)
    ids = [
        [one["token_ids"] for group in reply["groups"] for one in group["completions"]]
        for reply in (once, again)
    ]
    assert ids[0] == ids[1]
    assert ids[0] != [one["token_ids"] for group in other["groups"] for one in group["completions"]]
    assert len({tuple(one) for one in ids[0]}) > 1


def test_long_prompts_with_seeds_at_once_are_all_answered(worker: Worker) -> None:
    """More than is read in one step: vLLM's CPU build dies where it reads a part of a prompt that has a seed."""
    prompts = [[(7 * i + j) % 4000 + 5 for j in range(440)] for i in range(24)]
    answer = worker.generate(*prompts, group_size=4, draw={"max_tokens": 16})
    assert answer.status_code == 200, answer.text
    assert [len(group["completions"]) for group in answer.json()["groups"]] == [4] * 24


def test_an_id_beyond_the_vocabulary_is_the_request_s_fault(worker: Worker) -> None:
    assert worker.generate([5, 1 << 20]).status_code == 422
    assert worker.generate([5] * 500, draw={"max_tokens": 13}).status_code == 422


def test_only_the_request_s_tokens_stop(worker: Worker) -> None:
    reply = sample(worker, stop_ids=[], draw={"max_tokens": 48})
    ends = {
        (one["finish_reason"], len(one["token_ids"]))
        for group in reply["groups"]
        for one in group["completions"]
    }
    assert ends == {("length", 48)}


def test_filters_and_least_lengths_reach_the_engine(worker: Worker) -> None:
    greedy = sample(worker, draw={"max_tokens": 48, "temperature": 0})
    for group in greedy["groups"]:
        assert len({tuple(one["token_ids"]) for one in group["completions"]}) == 1
    narrow = sample(worker, draw={"max_tokens": 8, "top_k": 1})
    assert {
        value for group in narrow["groups"] for one in group["completions"] for value in one["logprobs"]
    } == {0.0}
    long = sample(worker, draw={"max_tokens": 48, "min_tokens": 40})
    assert min(len(one["token_ids"]) for group in long["groups"] for one in group["completions"]) > 40


def test_each_adapter_is_what_is_sampled_from(
    worker: Worker, base: Published, adapters: list[Published]
) -> None:
    apart = largest(adapters[0].logprobs(TEXT[:1], TEXT[1:]), base.logprobs(TEXT[:1], TEXT[1:]))
    assert apart > 100 * TOLERANCE
    for version, adapter in enumerate([*adapters, *adapters], start=1):
        made_active(worker, version, adapter)
        reply = scored(worker)
        assert reply["policy_version"] == version
        assert largest(reply["logprobs"], adapter.logprobs(TEXT[:1], TEXT[1:])) < TOLERANCE
        assert check_sampled(sample(worker), adapter, version, 4) < TOLERANCE


def test_whole_weights_in_place_then_an_adapter_on_the_base_again(
    worker: Worker, whole: Published, adapters: list[Published], base: Published
) -> None:
    before = worker.get("/health")["restarts"]
    made_active(worker, 11, whole)
    assert largest(scored(worker)["logprobs"], whole.logprobs(TEXT[:1], TEXT[1:])) < TOLERANCE
    assert check_sampled(sample(worker), whole, 11, 4) < TOLERANCE
    made_active(worker, 12, adapters[0])
    assert largest(scored(worker)["logprobs"], adapters[0].logprobs(TEXT[:1], TEXT[1:])) < TOLERANCE
    assert worker.activate(0).json()["version"] == 0
    assert largest(scored(worker)["logprobs"], base.logprobs(TEXT[:1], TEXT[1:])) < TOLERANCE
    assert worker.get("/health")["restarts"] == before


def engine_of(worker: Worker) -> tuple[int, set[int]]:
    """The process id of ``vllm serve`` and those of its group."""
    groups: dict[int, set[int]] = {}
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(path.parent.name)
        if fields[0] != "Z":
            parents[pid] = int(fields[1])
            groups.setdefault(int(fields[2]), set()).add(pid)
    keepers = [pid for pid, parent in parents.items() if parent == worker.process.pid]
    (engine,) = [pid for pid, parent in parents.items() if parent in keepers]
    return engine, groups[engine]


@pytest.mark.skipif(not shutil.which("ps") and not Path("/proc").is_dir(), reason="finds processes in /proc")
@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_an_engine_killed_in_mid_request_comes_back_with_the_active_version(
    worker: Worker, whole: Published, adapters: list[Published], kind: str
) -> None:
    published, version = (whole, 31) if kind == "full" else (adapters[1], 21)
    made_active(worker, version, published)
    engine, group = engine_of(worker)
    restarts = worker.get("/health")["restarts"]
    answers: list[httpx.Response] = []
    draw = {"max_tokens": 400}
    asking = threading.Thread(
        target=lambda: answers.append(worker.generate(*PROMPTS, group_size=64, stop_ids=[], draw=draw))
    )
    asking.start()
    until(lambda: worker.get("/info")["load"]["running"] == 1, "the request")
    os.kill(engine, signal.SIGKILL)
    asking.join()
    assert answers[0].status_code == 503
    assert "engine" in answers[0].json()["error"]
    assert set(worker.wait_for("ready", restarts + 1, START_S)) >= {"policy_version"}
    assert worker.get("/health")["policy_version"] == version
    reply = scored(worker)
    assert reply["policy_version"] == version
    assert largest(reply["logprobs"], published.logprobs(TEXT[:1], TEXT[1:])) < TOLERANCE
    assert not [pid for pid in group if Path(f"/proc/{pid}").exists() and pid in engine_of(worker)[1]]

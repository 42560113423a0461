"""A worker as its own program over a simulated vLLM: crashes, restarts, activation, and who dies with whom."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.running_worker import (
    ROOT,
    Simulation,
    adapter_files,
    alive,
    full_file,
    simulation,
    until,
)
from tests.cluster.simulated_vllm import DIES, HANGS, LIES, REFUSED, TALKS_NONSENSE, VOCABULARY, WAITS


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulation]:
    """One worker for the tests that leave it as they found it: ready, at version 0."""
    with simulation(tmp_path_factory.mktemp("shared")) as found:
        yield found


@pytest.fixture
def simulated(shared: Simulation) -> Iterator[Simulation]:
    shared.worker.wait_for("ready")
    assert shared.worker.activate(0).status_code == 200
    yield shared
    assert shared.worker.process.poll() is None


class Asking(threading.Thread):
    """A request on its way."""

    def __init__(self, simulated: Simulation, first: int, **changes: Any) -> None:
        super().__init__()
        self.answer: httpx.Response | None = None
        before = len(simulated.events("asked"))
        self._ask = lambda: simulated.worker.generate([first, 1], **changes)
        self.start()
        until(lambda: len(simulated.events("asked")) > before, "the request at the engine")

    def run(self) -> None:
        self.answer = self._ask()

    def status(self) -> int:
        self.join()
        assert self.answer is not None
        return self.answer.status_code


def test_every_kind_of_weights_is_what_is_sampled_from(simulated: Simulation) -> None:
    worker = simulated.worker
    assert worker.sampled() == (0, 1.0)
    assert worker.publish(1, adapter_files(3.0)).json()["complete"]
    assert worker.sampled() == (0, 1.0)  # taken in is not active
    assert worker.activate(1).json() | {"seconds": 0} == {"version": 1, "seconds": 0, "aborted": 0}
    assert worker.sampled() == (1, 4.0)
    worker.publish(2, {"model.safetensors": full_file(10.0)}, "full")
    worker.activate(2)
    assert worker.sampled() == (2, 10.0)
    worker.publish(3, adapter_files(5.0))
    worker.activate(3)
    assert worker.sampled() == (3, 6.0)  # on the base model, not on version 2
    assert worker.get("/info")["policy_version"] == 3
    assert worker.activate(0).status_code == 200
    assert worker.sampled() == (0, 1.0)


def test_an_engine_knows_one_adapter_at_a_time_and_reads_it_once(simulated: Simulation) -> None:
    worker = simulated.worker
    for version in (31, 32, 33):
        worker.publish(version, adapter_files(float(version)))
        worker.activate(version)
        assert worker.sampled() == (version, version + 1.0)
    assert not any(event["in_place"] for event in simulated.events("adapter"))
    assert len(simulated.events("names")[-1]["names"]) == 2  # the base model's and one more


def test_each_activation_has_its_own_cache(simulated: Simulation) -> None:
    worker = simulated.worker
    before = len(simulated.events("completion"))
    for version, number in ((41, 1.0), (42, 2.0), (0, None)):
        if number is not None:
            worker.publish(version, adapter_files(number))
        worker.activate(version)
        worker.sampled()
        worker.sampled()
    salts = [event["salt"] for event in simulated.events("completion")[before:]]
    assert [salts[0], salts[2], salts[4]] == [salts[1], salts[3], salts[5]]
    assert len(set(salts)) == 3


def test_prompts_have_seeds_of_their_own_that_do_not_depend_on_the_others(simulated: Simulation) -> None:
    def seeds(*prompts: list[int], seed: int) -> set[int]:
        before = len(simulated.events("completion"))
        assert simulated.worker.generate(*prompts, seed=seed).status_code == 200
        return {event["seed"] for event in simulated.events("completion")[before:]}

    assert len(seeds([5], [6], [7], seed=1)) == 3
    assert seeds([5], seed=1) < seeds([5], [9], seed=1)
    assert not seeds([5], [6], seed=1) & seeds([5], [6], seed=2)


def test_a_version_that_was_asked_for_and_is_not_active_is_refused(simulated: Simulation) -> None:
    assert simulated.worker.generate([5], policy_version=0).status_code == 200
    assert simulated.worker.generate([5], policy_version=9).status_code == 409
    assert simulated.worker.post("/score", {"token_ids": [1, 2], "policy_version": 9}).status_code == 409


def test_what_is_not_held_cannot_be_activated(simulated: Simulation) -> None:
    assert simulated.worker.activate(999).status_code == 404
    assert simulated.worker.sampled() == (0, 1.0)


def test_a_request_longer_than_the_engine_takes_is_refused(simulated: Simulation) -> None:
    answer = simulated.worker.generate([5] * 200, draw={"max_tokens": 100})
    assert answer.status_code == 422
    assert "300" in answer.json()["error"]
    assert simulated.worker.post("/score", {"token_ids": [1] * 256}).status_code == 422


def test_what_the_engine_finds_fault_with_is_the_request_s_fault(simulated: Simulation) -> None:
    answer = simulated.worker.generate([5, 6], [5, VOCABULARY])
    assert answer.status_code == 422
    assert "out of vocabulary" in answer.json()["error"]


@pytest.mark.parametrize("first", [LIES, TALKS_NONSENSE])
def test_an_engine_s_nonsense_is_not_passed_on(simulated: Simulation, first: int) -> None:
    answer = simulated.worker.generate([5, 6], [first, 1])
    assert answer.status_code == 503
    assert "engine" in answer.json()["error"]
    assert simulated.worker.sampled() == (0, 1.0)


def test_greedy_answers_are_one_answer(simulated: Simulation) -> None:
    before = len(simulated.events("completion"))
    reply = simulated.worker.generate([5, 6], group_size=3, draw={"max_tokens": 4, "temperature": 0}).json()
    assert len(reply["groups"][0]["completions"]) == 3
    assert [event["n"] for event in simulated.events("completion")[before:]] == [1]


def test_an_activation_waits_for_running_requests_and_holds_new_ones(simulated: Simulation) -> None:
    worker = simulated.worker
    worker.publish(51, adapter_files(1.0))
    running = Asking(simulated, WAITS)
    activated: list[httpx.Response] = []
    activating = threading.Thread(target=lambda: activated.append(worker.activate(51)))
    activating.start()
    worker.wait_for("activating")
    held: list[tuple[int, float]] = []
    asking = threading.Thread(target=lambda: held.append(worker.sampled()))
    asking.start()
    until(lambda: worker.get("/info")["load"]["waiting"] == 1, "the held request")
    assert worker.get("/info")["load"]["running"] == 1
    assert worker.get("/health")["policy_version"] == 0
    simulated.release()
    for thread in (running, activating, asking):
        thread.join()
    assert running.answer is not None
    assert running.answer.json()["policy_version"] == 0
    assert running.answer.json()["groups"][0]["completions"][0]["logprobs"][0] == -1.0
    assert activated[0].json()["aborted"] == 0
    assert held == [(51, 2.0)]


def test_what_comes_before_its_version_is_held_for_it(simulated: Simulation) -> None:
    """The trainer asks for the next version's groups right behind its activation: they may overtake it."""
    worker = simulated.worker
    worker.publish(52, adapter_files(1.0))
    early: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: early.append(worker.generate([5, 6], policy_version=52)))
    asking.start()
    until(lambda: worker.get("/info")["load"]["waiting"] == 1, "the early request")
    assert worker.activate(52).json()["aborted"] == 0
    asking.join()
    assert early[0].json()["policy_version"] == 52
    # Nobody activates this one: it is refused soon.
    worker.publish(53, adapter_files(3.0))
    assert worker.generate([5, 6], policy_version=53).status_code == 409


def test_an_activation_waits_for_what_was_sent_before_it(simulated: Simulation) -> None:
    """A request for the version that goes, overtaken by the activation of the next one."""
    worker = simulated.worker
    worker.publish(54, adapter_files(1.0))
    activated: list[httpx.Response] = []
    order = {"version": 54, "after": ["late"]}
    activating = threading.Thread(target=lambda: activated.append(worker.post("/activate", order)))
    activating.start()
    worker.wait_for("activating")
    late = worker.generate([5, 6], policy_version=0, request_id="late")
    activating.join()
    assert late.json()["policy_version"] == 0
    assert activated[0].json()["version"] == 54
    # One that never comes holds nothing up for long.
    assert worker.post("/activate", {"version": 0, "after": ["never"]}).status_code == 200
    assert worker.sampled() == (0, 1.0)


def test_an_activation_cuts_off_what_takes_too_long(simulated: Simulation) -> None:
    worker = simulated.worker
    worker.publish(61, adapter_files(1.0))
    running = Asking(simulated, HANGS)
    assert worker.activate(61, abort_after_s=0.05).json()["aborted"] == 1
    assert running.status() == 409
    assert worker.sampled() == (61, 2.0)


def test_a_client_that_hangs_up_frees_its_place(simulated: Simulation) -> None:
    worker = simulated.worker
    with httpx.Client(base_url=worker.http.base_url, headers=worker.http.headers, timeout=0.5) as hasty:
        request = {"request_id": "x", "prompts": [[HANGS]], "group_size": 1, "draw": {"max_tokens": 4}}
        with pytest.raises(httpx.TimeoutException):
            hasty.post("/v1/generate", json={**request, "seed": 1, "stop_ids": []})
    until(lambda: worker.get("/info")["load"]["running"] == 0, "the end of the request")


def test_an_adapter_that_the_engine_does_not_take_leaves_the_active_one(simulated: Simulation) -> None:
    worker = simulated.worker
    worker.publish(71, adapter_files(2.0))
    worker.activate(71)
    worker.publish(72, adapter_files(REFUSED))
    answer = worker.activate(72)
    assert answer.status_code == 422
    assert "not taken" in answer.json()["error"]
    worker.wait_for("ready")
    assert worker.sampled() == (71, 3.0)


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_a_killed_engine_comes_back_with_the_active_version(simulated: Simulation, kind: str) -> None:
    worker = simulated.worker
    version, expected = (81, 8.0) if kind == "adapter" else (82, 20.0)
    files = adapter_files(7.0) if kind == "adapter" else {"model.safetensors": full_file(20.0)}
    worker.publish(version, files, kind)
    worker.activate(version)
    restarts = worker.get("/health")["restarts"]
    engine = simulated.engine
    running = Asking(simulated, HANGS)
    os.kill(engine["pid"], signal.SIGKILL)
    assert running.status() == 503
    health = worker.wait_for("ready", restarts + 1)
    assert health["policy_version"] == version
    assert worker.sampled() == (version, expected)
    assert simulated.engine["pid"] != engine["pid"]
    until(lambda: not alive(engine["child"]), "the end of the killed engine's child")


def test_an_engine_that_dies_of_a_request_takes_down_nothing_else(simulated: Simulation) -> None:
    worker = simulated.worker
    restarts = worker.get("/health")["restarts"]
    assert worker.generate([DIES]).status_code == 503
    worker.wait_for("ready", restarts + 1)
    assert worker.sampled() == (0, 1.0)


def test_an_engine_that_dies_of_weights_comes_back_without_them(simulated: Simulation) -> None:
    worker = simulated.worker
    worker.publish(91, {"model.safetensors": full_file(REFUSED)}, "full")
    restarts = worker.get("/health")["restarts"]
    assert worker.activate(91).status_code == 503
    until(lambda: worker.get("/health")["state"] == "ready", "the restarted engine")
    assert worker.get("/health")["restarts"] == restarts + 1  # counted, whoever found out that it had died
    assert worker.sampled() == (0, 1.0)


def test_a_killed_keeper_leaves_no_engine(simulated: Simulation) -> None:
    worker = simulated.worker
    engine = simulated.engine
    restarts = worker.get("/health")["restarts"]
    keeper = int(Path(f"/proc/{engine['pid']}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(keeper, signal.SIGKILL)
    worker.wait_for("ready", restarts + 1)
    until(lambda: not alive(engine["pid"]) and not alive(engine["child"]), "the end of the old engine")
    assert worker.sampled() == (0, 1.0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_engine_ends_with_its_worker(tmp_path: Path, number: signal.Signals) -> None:
    with simulation(tmp_path) as simulated:
        engine, process = simulated.engine, simulated.worker.process
        process.send_signal(number)
        code = process.wait(30)
        assert code == (-signal.SIGKILL if number == signal.SIGKILL else 0)
        until(lambda: not alive(engine["pid"]) and not alive(engine["child"]), "the engine's end")


def test_both_killed_at_once_leave_nothing(tmp_path: Path) -> None:
    with simulation(tmp_path) as simulated:
        engine = simulated.engine
        os.kill(simulated.worker.process.pid, signal.SIGKILL)
        os.kill(engine["pid"], signal.SIGKILL)
        until(lambda: not alive(engine["pid"]) and not alive(engine["child"]), "the end of all")


def test_an_engine_that_cannot_start_is_tried_again_with_longer_waits(tmp_path: Path) -> None:
    (tmp_path / "cannot_start").touch()
    with simulation(tmp_path, wait=False) as simulated:
        worker = simulated.worker
        health = worker.wait_for("failed")
        assert "cannot start, as the test asked for" in health["detail"]
        assert worker.generate([5]).status_code == 503
        assert worker.http.get("/v1/info").status_code == 503
        assert worker.activate(0).status_code == 503
        (tmp_path / "cannot_start").unlink()
        worker.wait_for("ready")
        assert worker.sampled() == (0, 1.0)
        assert "cannot start" in (tmp_path / "work" / "engine.log").read_text()


def test_vllm_metal_takes_whole_weights_by_a_fresh_process(tmp_path: Path) -> None:
    with simulation(tmp_path, kind="vllm-metal") as simulated:
        worker = simulated.worker
        assert worker.get("/info")["features"]["full_weights"] == "restart"
        worker.publish(1, adapter_files(3.0))
        worker.activate(1)
        assert worker.sampled() == (1, 4.0)
        assert simulated.events("adapter")[-1]["in_place"] is True
        first = simulated.engine["pid"]
        worker.publish(2, {"model.safetensors": full_file(10.0)}, "full")
        assert worker.activate(2).status_code == 200
        assert worker.sampled() == (2, 10.0)
        assert simulated.engine["pid"] != first
        assert simulated.events("full") == []
        worker.publish(3, adapter_files(5.0))
        assert worker.activate(3).status_code == 200
        assert worker.sampled() == (3, 6.0)
        os.kill(simulated.engine["pid"], signal.SIGKILL)
        worker.wait_for("ready", 1)
        assert worker.sampled() == (3, 6.0)
        assert worker.generate([5], draw={"max_tokens": 4, "min_tokens": 2}).status_code == 422


def test_two_workers_do_not_share_a_folder(simulated: Simulation) -> None:
    import subprocess
    import sys

    command = [
        *(sys.executable, "-m", "cluster.worker", "--model", str(simulated.model), "--engine", "mlx"),
        *("--listen", "127.0.0.1:0", "--work-dir", str(simulated.folder / "work")),
    ]
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert "another worker's" in ended.stderr

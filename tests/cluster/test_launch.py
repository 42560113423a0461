"""The launcher through a real sshd, and through a simulated ssh: it starts, it stops, and touches nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import launch
from cluster.launch import main
from cluster.remote_scripts import START, STOP
from tests.cluster.remote import (
    ROOT,
    SSHD,
    Remote,
    checkout,
    host_entry,
    real_sshd,
    simulated_ssh,
    write_nodes,
)

ODD = 'it\'s a "place"; touch $HOME `id` & more'
"""A folder's name that a shell must never read."""


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    """A real sshd where there is one."""
    folder = tmp_path_factory.mktemp("remote") / "ssh"
    if SSHD is None:
        yield simulated_ssh(folder)
    else:
        with real_sshd(folder) as found:
            yield found


class Place:
    """A made machine, its nodes.yaml, and what was said."""

    def __init__(self, folder: Path, remote: Remote, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = checkout(folder / ODD)
        self.remote = remote
        self.capsys = capsys
        self.nodes = folder / "nodes.yaml"
        self.state = self.directory / ".cluster" / "worker-8700"
        self.describe()

    def describe(self, **changes: Any) -> None:
        write_nodes(self.nodes, host_entry(self.directory, self.remote, **changes))

    def run(self, action: str, *more: str) -> tuple[int, str]:
        code = main([action, str(self.nodes), *self.remote.arguments, *more])
        said = self.capsys.readouterr()
        assert "secret-of-the-test" not in said.out + said.err
        return code, said.out + said.err

    @property
    def pid(self) -> int:
        return int((self.state / "pid").read_text().split()[0])


@pytest.fixture
def place(
    tmp_path: Path, remote: Remote, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    assert "-lt 20" in START
    monkeypatch.setattr(
        launch, "START", START.replace("-lt 20", "-lt 4")
    )  # a simulated worker is there at once
    made = Place(tmp_path, remote, capsys)
    yield made
    made.run("down")


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks for processes in /proc")


@needs_proc
def test_a_worker_s_life(place: Place) -> None:
    assert place.run("status") == (1, "127.0.0.1: no worker was started here\n")
    code, said = place.run("up")
    assert code == 0
    assert "GB free" in said
    assert f"started, process {place.pid}" in said
    pid = place.pid
    assert json.loads((place.directory / "said.json").read_text()) == [
        pid,
        *("--model", "models/m", "--engine", "mlx"),
        *("--listen", "127.0.0.1:8700", "--token-file", "token"),
    ]
    assert "the worker speaks" in (place.state / "log").read_text()
    assert (place.state / "log").stat().st_mode & 0o077 == 0
    assert os.getsid(pid) == pid  # it outlives the connection
    assert place.run("status") == (0, f"127.0.0.1: running, process {pid}\n")
    code, said = place.run("up")
    assert (code, place.pid) == (0, pid)
    assert f"running, process {pid}" in said
    assert place.run("down") == (0, f"127.0.0.1: stopped, process {pid}\n")
    assert not lives(pid)
    assert place.run("status")[0] == 1
    assert place.run("down") == (0, "127.0.0.1: no worker was started here\n")
    # No name of a folder or of anything else was taken for a command.
    assert sorted(path.name for path in place.directory.parent.iterdir() if path.name != "ssh") == [
        ODD,
        "nodes.yaml",
    ]


@needs_proc
def test_the_same_without_a_connection(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the simulated ssh, where there is a real one too."""
    made = Place(tmp_path, simulated_ssh(tmp_path / "ssh"), capsys)
    assert made.run("up")[0] == 0
    pid = made.pid
    assert made.run("status") == (0, f"127.0.0.1: running, process {pid}\n")
    assert made.run("down") == (0, f"127.0.0.1: stopped, process {pid}\n")
    assert not lives(pid)


@needs_proc
def test_a_process_that_got_the_id_since_is_left_alone(place: Place) -> None:
    assert place.run("up")[0] == 0
    began = (place.state / "pid").read_text().split("\n")[1]
    other = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    pid = place.pid
    try:
        (place.state / "pid").write_text(f"{other.pid}\n{began}\n")
        assert place.run("status")[0] == 1
        code, said = place.run("down")
        assert code == 0
        assert "has ended" in said
        assert other.poll() is None
        assert lives(pid)
        for record in ("", "x\n", "1\n\n", f"{other.pid}\n", f"-{other.pid}\n{began}\n", "$(id)\nx\n"):
            (place.state / "pid").write_text(record)
            assert place.run("down")[0] == 0
            assert other.poll() is None
    finally:
        other.kill()
        other.wait()
        os.kill(pid, signal.SIGKILL)


@needs_proc
def test_a_worker_that_died_is_seen_and_started_again(place: Place) -> None:
    place.run("up")
    pid = place.pid
    os.kill(pid, signal.SIGKILL)
    code, said = place.run("status")
    assert code == 1
    assert "has ended" in said
    assert "| the worker speaks" in said
    assert place.run("up")[0] == 0
    assert place.pid != pid
    assert place.run("status")[0] == 0


@needs_proc
def test_a_worker_that_does_not_stop_is_killed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.describe(options=["--stubborn"])
    place.run("up")
    pid = place.pid
    assert "300" in STOP
    monkeypatch.setattr(launch, "STOP", STOP.replace("300", "3"))
    code, said = place.run("down")
    assert (code, "was killed" in said) == (0, True)
    assert not lives(pid)


def test_a_worker_that_ends_at_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "START", START)
    place.describe(options=["--fail"])
    code, said = place.run("up")
    assert code == 1
    assert "ended at once" in said
    assert "| error: --fail was asked for" in said


PROBLEMS: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"directory": "/nowhere"}, "no folder /nowhere"),
    ({"python": "/nowhere/python"}, "no interpreter"),
    ({"python": "/bin/false"}, "cannot run the worker"),
    ({"engine": "vllm", "vllm": "/nowhere/vllm"}, "no executable /nowhere/vllm"),
    ({"engine": "vllm", "vllm": "/bin/false"}, "does not have the package vllm"),
    ({"model": "/nowhere/model"}, "no config.json"),
    ({"token_file": "none"}, "cannot be read"),
    ({"token_file": "open-token"}, "chmod 600"),
    ({"token_file": "empty-token"}, "is empty"),
    ({"free_gb": 1e9}, "GB are free"),
]


def test_nothing_is_started_before_all_is_well(place: Place) -> None:
    (place.directory / "open-token").write_text("x")
    (place.directory / "open-token").chmod(0o644)
    (place.directory / "empty-token").touch(0o600)
    hosts = [
        host_entry(place.directory, place.remote, name=f"h{number}", listen=f"127.0.0.1:{8700 + number}")
        for number in range(len(PROBLEMS))
    ]
    write_nodes(place.nodes, *(host | change for host, (change, _) in zip(hosts, PROBLEMS, strict=True)))
    code, complaint = place.run("up")
    assert code == 2
    assert complaint.count("\n") == 1
    found: dict[str, str] = {}
    for problem in complaint.removeprefix("error: nothing was started: ").split("; and "):
        name, _, text = problem.partition(": ")
        found[name] = found.get(name, "") + text
    for number, (_, said) in enumerate(PROBLEMS):
        assert said in found.get(f"h{number}", "")
    assert "h0" not in found
    assert not (place.directory / ".cluster").exists()
    place.describe()


def test_another_protocol_over_there(place: Place) -> None:
    wire = place.directory / "cluster" / "wire.py"
    wire.write_text(wire.read_text().replace("\nAPI = 1\n", "\nAPI = 7\n"))
    code, said = place.run("up")
    assert (code, "speaks version 7" in said) == (2, True)


def test_two_workers_on_one_machine(place: Place) -> None:
    entries = [
        host_entry(place.directory, place.remote, name=name, listen=f"127.0.0.1:{port}")
        for name, port in (("one", 8701), ("two", 8702))
    ]
    write_nodes(place.nodes, *entries)
    assert place.run("up")[0] == 0
    assert place.run("status")[0] == 0
    write_nodes(place.nodes, entries[0])
    assert place.run("down")[0] == 0
    write_nodes(place.nodes, *entries)
    code, said = place.run("status")
    assert code == 1
    assert "one: no worker" in said
    assert "two: running" in said
    assert place.run("down")[0] == 0
    place.describe()


def test_a_dry_run_touches_nothing(place: Place) -> None:
    for action in ("up", "status", "down", "logs"):
        code, said = place.run(action, "--dry-run")
        assert code == 0
        assert "StrictHostKeyChecking=yes" in said
    assert not (place.directory / ".cluster").exists()


@needs_proc
def test_logs_are_followed_and_leave_nothing_behind(place: Place) -> None:
    place.run("up")
    command = [sys.executable, "-m", "cluster.launch", "logs", str(place.nodes), *place.remote.arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "127.0.0.1 | the worker speaks\n"
    with (place.state / "log").open("a") as log:
        log.write("and more\n")
    assert process.stdout.readline() == "127.0.0.1 | and more\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    tails = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert f"tail -n 20 -F {place.state}" not in tails
    assert place.run("status")[0] == 0


def test_a_host_whose_key_is_not_known(place: Place) -> None:
    if place.remote.port is None:
        pytest.skip("a simulated ssh has no keys")
    known = place.remote.known_hosts.read_text()
    try:
        for content in ("", known.replace(known.split()[2][-8:], "AAAAAAAA")):
            place.remote.known_hosts.write_text(content)
            code, said = place.run("status")
            assert code == 2
            assert "ssh does not know the key" in said
            assert place.remote.known_hosts.read_text() == content  # nor is it learnt
    finally:
        place.remote.known_hosts.write_text(known)


def test_a_host_that_is_not_there(place: Place) -> None:
    if place.remote.port is None:
        pytest.skip("a simulated ssh reaches everything")
    place.describe(port=1)
    code, said = place.run("status")
    assert (code, "cannot be reached by ssh" in said) == (2, True)
    place.describe()
    assert main(["status", str(place.nodes), "--ssh", "/nowhere/ssh"]) == 2

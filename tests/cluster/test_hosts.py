"""`hosts` of nodes.yaml: what is refused, in one sentence; and the service files."""

from __future__ import annotations

import plistlib
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.hosts import HostConfig
from cluster.launch import main
from cluster.nodes import read_hosts
from cluster.remote_scripts import answers, script
from cluster.units import launchd_unit, systemd_unit
from mlx_sumrl.errors import UserError

HOST: dict[str, Any] = {
    "host": "mini-2.local",
    "directory": "/opt/mlx_sumrl",
    "engine": "vllm-metal",
    "model": "models/qwen",
    "vllm": "/opt/vllm/bin/vllm",
    "listen": "0.0.0.0:8700",
    "token_file": "/opt/token",
}


def test_a_host_by_hand(tmp_path: Path) -> None:
    (tmp_path / "nodes.yaml").write_text(yaml.safe_dump({"workers": ["http://a:1"], "hosts": [HOST]}))
    [host] = read_hosts(tmp_path / "nodes.yaml")
    assert (host.title, host.listen_port) == ("mini-2.local", 8700)
    assert host.worker_command() == [
        *(".venv/bin/python", "-m", "cluster.worker", "--model", "models/qwen", "--engine", "vllm-metal"),
        *("--vllm", "/opt/vllm/bin/vllm", "--listen", "0.0.0.0:8700", "--token-file", "/opt/token"),
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"host": "-oProxyCommand=touch x"}, "no name that ssh"),
        ({"host": "a b"}, "no name that ssh"),
        ({"user": "-l"}, "no name that ssh"),
        ({"port": 0}, "port"),
        ({"directory": "mlx_sumrl"}, "begin at the root"),
        ({"directory": "/a\nb"}, "cannot be seen"),
        ({"token_file": "~/token"}, "token_file"),
        ({"python": ""}, "empty"),
        ({"vllm": None}, "needs `vllm`"),
        ({"vllm": "bin/vllm"}, "begin at the root"),
        ({"listen": "8700"}, "ADDRESS:PORT"),
        ({"listen": "0.0.0.0:99999"}, "ADDRESS:PORT"),
        ({"listen": "x;id:80"}, "ADDRESS:PORT"),
        ({"engine": "other"}, "engine"),
        ({"more": 1}, "unknown option hosts.0.more"),
        ({"options": ["a\0b"]}, "cannot be seen"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "nodes.yaml").write_text(yaml.safe_dump({"hosts": [HOST | changes]}))
    with pytest.raises(UserError, match=said):
        read_hosts(tmp_path / "nodes.yaml")


def test_hosts_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = tmp_path / "nodes.yaml"
    for content in ({}, {"hosts": []}, {"hosts": "a"}, {"hosts": ["a"]}, {"hosts": [HOST, HOST]}):
        nodes.write_text(yaml.safe_dump(content))
        assert main(["status", str(nodes)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["up", str(tmp_path / "none.yaml")]) == 2


@given(st.lists(st.text(min_size=1).filter(str.isprintable), min_size=1, max_size=4))
def test_values_reach_the_shell_as_they_are(words: list[str]) -> None:
    host = HostConfig(**HOST | {"options": tuple(words), "model": "m" + words[0]})
    text = script(host, "")
    [line] = [line for line in text.split("\n") if line.startswith("set -- ")]
    assert shlex.split(line)[2:] == host.worker_command()
    assert f"model={shlex.quote('m' + words[0])}\n" in text


def test_answers_among_other_lines() -> None:
    assert answers("Welcome!\nstate=running\nlog=a=b\nlog=c\n=x\nstrange key=1\n") == {
        "state": ["running"],
        "log": ["a=b", "c"],
    }


def test_units() -> None:
    host = HostConfig(**HOST | {"name": "a--b", "options": ("--dtype", 'odd "$HOME" 100% \\ <&>')})
    content = plistlib.loads(launchd_unit(host).encode())
    python, *rest = host.worker_command()
    command = [f"/opt/mlx_sumrl/{python}", *rest]
    assert content["ProgramArguments"] == ["/usr/bin/caffeinate", "-is", *command]
    assert content["WorkingDirectory"] == host.directory
    unit = systemd_unit(host)
    [line] = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    words = shlex.split(line.removeprefix("ExecStart=").replace("$$", "$").replace("%%", "%"))
    assert words == command
    assert f"WorkingDirectory={host.directory}\n" in unit


def test_units_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    linux = HOST | {"host": "box", "engine": "mlx", "vllm": None, "directory": "/srv/m"}
    (tmp_path / "nodes.yaml").write_text(yaml.safe_dump({"hosts": [HOST, linux]}))
    assert main(["units", str(tmp_path / "nodes.yaml")]) == 0
    said = capsys.readouterr().out
    assert "<plist" in said
    assert "[Service]" in said
    assert main(["units", str(tmp_path / "nodes.yaml"), "--service", "systemd"]) == 0
    assert "<plist" not in capsys.readouterr().out

"""Another machine for the launcher: a real sshd on loopback, or a simulated ssh that runs the command here; and a
simulated worker, in a checkout of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

WORKER = '''
"""A simulated worker: notes its words, and lives until it is asked to end."""
import json, os, signal, sys
from pathlib import Path
if "--fail" in sys.argv:
    print("error: --fail was asked for", file=sys.stderr)
    sys.exit(2)
if "--stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("the worker speaks", flush=True)
Path("said.json").write_text(json.dumps([os.getpid(), *sys.argv[1:]]))
while True:
    signal.pause()
'''
SIMULATED_SSH = """#!/bin/sh
# The last word is the command; no connection is made.
for word; do :; done
exec sh -c "$word"
"""


@dataclass
class Remote:
    """How to get there."""

    arguments: list[str]
    """Of the launcher."""
    port: int | None
    """Of ssh; None where it is simulated."""
    known_hosts: Path


def checkout(folder: Path) -> Path:
    """A folder that passes for this project over there."""
    (folder / "cluster").mkdir(parents=True)
    (folder / "cluster" / "__init__.py").touch()
    (folder / "cluster" / "worker.py").write_text(WORKER)
    shutil.copyfile(ROOT / "cluster" / "wire.py", folder / "cluster" / "wire.py")
    (folder / "models" / "m").mkdir(parents=True)
    (folder / "models" / "m" / "config.json").write_text("{}")
    token = folder / "token"
    token.touch(0o600)
    token.write_text("secret-of-the-test\n")
    return folder


def host_entry(directory: Path, remote: Remote, /, **changes: Any) -> dict[str, Any]:
    entry = {
        "host": "127.0.0.1",
        "user": getpass.getuser(),
        "port": remote.port,
        "directory": str(directory),
        "python": sys.executable,
        "engine": "mlx",
        "model": "models/m",
        "listen": "127.0.0.1:8700",
        "token_file": "token",
        "free_gb": 0.001,
    }
    return entry | changes


def write_nodes(path: Path, *hosts: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump({"max_staleness": 1, "hosts": list(hosts)}))
    return path


@contextmanager
def real_sshd(folder: Path) -> Iterator[Remote]:
    """An sshd of our own: own keys, own config, an unprivileged port of loopback."""
    assert SSHD is not None
    folder.mkdir()
    for name in ("host_key", "user_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True, timeout=60
        )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # it asks for that
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/user_key.pub\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin yes\nMaxStartups 200\n"  # ten logins at once would be cut off on a busy machine
    )
    known = folder / "known_hosts"
    kind, key, *_ = (folder / "host_key.pub").read_text().split()
    known.write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    (folder / "ssh_config").write_text(
        f"IdentityFile {folder}/user_key\nIdentitiesOnly yes\nUserKnownHostsFile {known}\nGlobalKnownHostsFile none\n"
        "StrictHostKeyChecking no\n"  # the launcher must not be talked out of it
    )
    said = folder / "sshd.log"  # a file: a session that is left behind would hold a pipe open for ever
    with said.open("w") as log:
        daemon = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        while "listening" not in said.read_text():
            if daemon.poll() is not None:
                raise RuntimeError(f"sshd did not start: {said.read_text()}")
            time.sleep(0.02)
        yield Remote(["--ssh-config", str(folder / "ssh_config")], port, known)
    finally:
        daemon.kill()
        daemon.wait()


def simulated_ssh(folder: Path) -> Remote:
    """Not ssh: what would be run over there is run here."""
    folder.mkdir()
    program = folder / "ssh"
    program.write_text(SIMULATED_SSH)
    program.chmod(0o755)
    return Remote(["--ssh", str(program)], None, folder / "none")

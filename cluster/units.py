"""Service files for workers that run from boot on: launchd for a Mac, systemd for Linux. Printed, never installed.

Invariant: the service runs exactly the command that the launcher would start, in the same folder.
"""

from __future__ import annotations

import plistlib

from cluster.hosts import HostConfig

SPECIAL = {"\\": "\\\\", '"': '\\"', "%": "%%", "$": "$$"}
"""What systemd takes for more than itself within quotes."""


def launchd_unit(host: HostConfig) -> str:
    """A property list for ``~/Library/LaunchAgents``, kept awake by ``caffeinate`` while the worker runs."""
    state = _state(host)
    label = f"mlx-sumrl.worker-{host.listen_port}"
    content = {
        "Label": label,
        "ProgramArguments": ["/usr/bin/caffeinate", "-is", *_command(host)],
        "WorkingDirectory": host.directory,
        "RunAtLoad": True,
        "KeepAlive": True,
        "ThrottleInterval": 10,
        "ExitTimeOut": 30,
        "StandardOutPath": f"{state}.log",
        "StandardErrorPath": f"{state}.log",
    }
    where = f"~/Library/LaunchAgents/{label}.plist"
    text = plistlib.dumps(content, sort_keys=False).decode()
    # A comment may not stand before the declaration, nor hold two dashes.
    first, rest = text.split("\n", 1)
    comment = f"<!-- {host.title.replace('--', '-')}: save as {where}, then: launchctl load -w {where} -->"
    return f"{first}\n{comment}\n{rest}"


def systemd_unit(host: HostConfig) -> str:
    """A unit for ``~/.config/systemd/user``."""
    name = f"mlx-sumrl-worker-{host.listen_port}.service"
    command = " ".join(map(_quoted, _command(host)))
    return f"""# {host.title}: save as ~/.config/systemd/user/{name}, then: systemctl --user enable --now {name}
# (and once: loginctl enable-linger, so that it runs while nobody is logged in)
[Unit]
Description=mlx_sumrl worker on port {host.listen_port}
After=network-online.target

[Service]
WorkingDirectory={host.directory.replace("%", "%%")}
ExecStart={command}
Restart=always
RestartSec=10
TimeoutStopSec=30
UMask=0077

[Install]
WantedBy=default.target
"""


def _command(host: HostConfig) -> list[str]:
    """As the launcher's, with an interpreter from the root: neither service looks in its own folder."""
    python, *rest = host.worker_command()
    return [python if python.startswith("/") else f"{host.directory.rstrip('/')}/{python}", *rest]


def _state(host: HostConfig) -> str:
    return f"{host.directory.rstrip('/')}/worker-{host.listen_port}"


def _quoted(word: str) -> str:
    return '"' + "".join(SPECIAL.get(character, character) for character in word) + '"'

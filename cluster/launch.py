"""Workers on other machines, by the system's ssh: ``python -m cluster.launch up|status|logs|down|units nodes.yaml``

Invariant: what is stopped is what was started here and nothing else (see `cluster.remote_scripts`); no worker is
started before every host has passed its preflight; and a host whose key ssh does not know is never talked to.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from cluster.hosts import HostConfig
from cluster.nodes import read_hosts
from cluster.remote_scripts import (
    FOLLOW,
    PREFLIGHT,
    START,
    STATUS,
    STOP,
    answers,
    preflight_problems,
    script,
)
from cluster.units import launchd_unit, systemd_unit
from mlx_sumrl.errors import UserError
from mlx_sumrl.options.command_line import exit_code_of

ACTIONS = {
    "up": "check every host, then start its worker; one that runs already is left as it is",
    "status": "which workers run",
    "logs": "follow all logs, until Ctrl-C",
    "down": "stop the workers that were started so, and nothing else",
    "units": "print a service file for each host, for workers that are to run from boot on",
}
PATIENCE = 90.0
"""Seconds that anything over there may take; stopping waits 30 for a worker."""
UNREACHABLE = 255
"""ssh's own exit code where it is not that of the command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is asked; the exit code: 0, 1 where a worker is not as it should be, 2 for what the user has to mend."""
    asked = parsed(argv)
    codes: list[int] = []
    return exit_code_of(lambda: codes.append(act(asked))) or codes[0]


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    listed = "\n".join(f"  {name:<8}{what}" for name, what in ACTIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m cluster.launch",
        description=f"{str(__doc__).splitlines()[0]}\n\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=tuple(ACTIONS))
    parser.add_argument("nodes", type=Path, help="nodes.yaml, with `hosts`")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be run over there, and run nothing"
    )
    parser.add_argument("--follow", action="store_true", help="after `up`, follow the logs until Ctrl-C")
    parser.add_argument("--ssh", default="ssh", help="the ssh command (ssh otherwise)")
    parser.add_argument("--ssh-config", type=Path, help="its -F: another config than your own")
    parser.add_argument("--service", choices=("launchd", "systemd"), help="kind of unit; by engine otherwise")
    return parser.parse_args(argv)


def act(asked: argparse.Namespace) -> int:
    """Raises `UserError`."""
    hosts = read_hosts(asked.nodes)
    if asked.action == "units":
        print("\n".join(_unit(host, asked.service) for host in hosts), end="")
        return 0
    bodies = {
        "up": (PREFLIGHT, START),
        "status": (STATUS,),
        "logs": (FOLLOW,),
        "down": (STOP,),
    }[asked.action]
    if asked.dry_run:
        for host in hosts:
            for body in bodies:
                print(f"# {host.title}\n{subprocess.list2cmdline(ssh_command(asked, host))} <<'SCRIPT'")
                print(f"{script(host, body)}SCRIPT\n")
        return 0
    if asked.action == "logs":
        return follow(asked, hosts)
    if asked.action == "up":
        preflight(asked, hosts)
    found = everywhere(hosts, lambda host: remotely(asked, host, bodies[-1]))
    for host, answer in zip(hosts, found, strict=True):
        _say(host, answer)
    if asked.action == "up" and asked.follow:
        return follow(asked, hosts)
    good = {
        "up": {"started", "running"},
        "status": {"running"},
        "down": {"stopped", "killed", "ended", "none"},
    }
    return int(any(answer.get("state", [""])[-1] not in good[asked.action] for answer in found))


def ssh_command(asked: argparse.Namespace, host: HostConfig) -> list[str]:
    """How a host's sh is reached: no questions, and no host whose key is not known."""
    command = [asked.ssh, *(["-F", str(asked.ssh_config)] if asked.ssh_config else [])]
    for option in (
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        "ConnectTimeout=10",
        "ServerAliveInterval=15",
    ):
        command += ["-o", option]
    command += ["-p", str(host.port)] if host.port else []
    command += ["-l", host.user] if host.user else []
    return [*command, "-T", "--", host.host, "exec /bin/sh -s"]


def remotely(asked: argparse.Namespace, host: HostConfig, body: str) -> dict[str, list[str]]:
    """What a script answered on a host. Raises `UserError` where it could not be run."""
    command = ssh_command(asked, host)
    try:
        done = subprocess.run(
            command,
            input=script(host, body),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            errors="replace",
        )
    except FileNotFoundError:
        raise UserError(f"there is no command {asked.ssh}; install OpenSSH's client") from None
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{host.title} did not answer within {PATIENCE:.0f} s; look at it by hand: ssh {host.host}"
        ) from None
    complaint = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
    if done.returncode == UNREACHABLE:
        if "host key" in done.stderr.lower():
            raise UserError(
                f"{host.title}: ssh does not know the key of {host.host} ({complaint}); connect once by hand, compare "
                "the fingerprint that it shows, and come back"
            )
        raise UserError(
            f"{host.title} cannot be reached by ssh ({complaint}); `ssh {host.host}` must work without a question"
        )
    if done.returncode != 0:
        raise UserError(f"{host.title}: {complaint}; look at {host.directory} on {host.host}")
    return answers(done.stdout)


def everywhere(
    hosts: Sequence[HostConfig], work: Callable[[HostConfig], dict[str, list[str]]]
) -> list[dict[str, list[str]]]:
    """The same on all hosts at once. Raises one `UserError` with all that went wrong, when all have ended."""
    with ThreadPoolExecutor(max_workers=min(len(hosts), 16)) as pool:
        tasks = [pool.submit(work, host) for host in hosts]
    errors = [str(error) for task in tasks if isinstance(error := task.exception(), UserError)]
    if errors:
        raise UserError("; and ".join(errors))
    return [task.result() for task in tasks]


def preflight(asked: argparse.Namespace, hosts: Sequence[HostConfig]) -> None:
    """Raises `UserError` with everything that has to be mended, on all hosts."""
    found = everywhere(hosts, lambda host: remotely(asked, host, PREFLIGHT))
    problems = [
        f"{host.title}: {problem}"
        for host, answer in zip(hosts, found, strict=True)
        for problem in preflight_problems(host, answer)
    ]
    if problems:
        raise UserError("nothing was started: " + "; and ".join(problems))
    for host, answer in zip(hosts, found, strict=True):
        versions = [f"Python {answer['python'][-1].split()[1]}"]
        versions += [f"{name} {answer[name][-1]}" for name in ("mlx", "vllm") if name in answer]
        free = int(answer["free_kb"][-1]) * 1024 / 1e9
        print(f"{host.title}: {', '.join(versions)}, {free:.0f} GB free", flush=True)


def follow(asked: argparse.Namespace, hosts: Sequence[HostConfig]) -> int:
    """All logs, line by line with the host's name before, until Ctrl-C or until every ssh has ended."""
    processes = []
    threads = []
    try:
        for host in hosts:
            process = subprocess.Popen(
                ssh_command(asked, host),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            processes.append(process)
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(script(host, FOLLOW))
            process.stdin.flush()
            threads.append(threading.Thread(target=_prefixed, args=(host.title, process.stdout), daemon=True))
            threads[-1].start()
        for thread in threads:
            thread.join()
        return int(any(process.wait() for process in processes))
    finally:
        for process in processes:
            if process.stdin is not None:
                process.stdin.close()  # the end over there
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _prefixed(title: str, lines: IO[str]) -> None:
    for line in lines:
        print(f"{title} | {line.rstrip()}", flush=True)


def _say(host: HostConfig, answer: dict[str, list[str]]) -> None:
    state = answer.get("state", ["unknown"])[-1]
    words = {
        "none": "no worker was started here",
        "ended": "the worker that was started here has ended",
        "killed": "did not stop in 30 s and was killed",
        "failed": "ended at once",
    }
    pid = f", process {answer['pid'][-1]}" if "pid" in answer else ""
    print(f"{host.title}: {words.get(state, state)}{pid}", flush=True)
    for line in answer.get("log", ()):
        print(f"{host.title} | {line}", flush=True)


def _unit(host: HostConfig, kind: str | None) -> str:
    kind = kind or ("launchd" if host.engine == "vllm-metal" else "systemd")
    return launchd_unit(host) if kind == "launchd" else systemd_unit(host)


if __name__ == "__main__":
    sys.exit(main())

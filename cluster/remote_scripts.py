"""What the launcher has done on another machine: POSIX shell scripts, handed to ``sh -s`` as its input.

Invariant: a worker's record holds its process id *and* when that process began, and only a process for which both
hold is ever signalled: an id that the system has given to something else since is left alone. Every value in a
script is quoted for sh, and the login shell over there sees none of them.

A process's beginning is the kernel's own count on Linux, together with the id of this boot (what ``ps`` prints there
is computed from the clock and wobbles by a second), and what ``ps`` prints elsewhere.
"""

from __future__ import annotations

import shlex

from cluster.hosts import HostConfig
from cluster.wire import API

BEGAN = """began() {  # nothing for a process that is not there, or has ended and was not yet asked how
    if [ -r "/proc/$1/stat" ]; then
        boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)
        stat=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null) && set -- $stat
        case $1 in ''|Z|X) ;; *) echo "$boot ${20}";; esac
    else
        case $(ps -o stat= -p "$1" 2>/dev/null) in ''|Z*) return;; esac
        LC_ALL=C ps -o lstart= -p "$1" 2>/dev/null | sed 's/^ *//; s/ *$//'
    fi
}
# The worker's process id, where it still runs and is the one that was started.
ours() {
    [ -r "$record" ] || return 1
    pid=$(sed -n 1p "$record"); began=$(sed -n 2p "$record")
    case $pid in ''|*[!0-9]*|0|1) return 1;; esac
    [ -n "$began" ] && [ "$(began "$pid")" = "$began" ]
}
"""
START = """mkdir -p "$state" || exit 1
if ours; then echo "state=running"; echo "pid=$pid"; exit 0; fi
cd "$directory" || exit 1
umask 077
session=; command -v setsid >/dev/null 2>&1 && session=setsid
$session nohup "$@" >>"$log" 2>&1 </dev/null &
pid=$!
printf '%s\\n%s\\n' "$pid" "$(began "$pid")" >"$record.new" && mv "$record.new" "$record"
tries=0
while [ $tries -lt 20 ]; do  # a wrong option shows at once
    ours || { echo "state=failed"; tail -n 5 "$log" | sed 's/^/log=/'; exit 0; }
    tries=$((tries + 1)); sleep 0.1
done
echo "state=started"; echo "pid=$pid"
"""
STATUS = """if ours; then
    echo "state=running"; echo "pid=$pid"
elif [ -e "$record" ]; then
    echo "state=ended"; tail -n 3 "$log" 2>/dev/null | sed 's/^/log=/'
else
    echo "state=none"
fi
"""
STOP = """if ! ours; then
    if [ -e "$record" ]; then rm -f "$record"; echo "state=ended"; else echo "state=none"; fi
    exit 0
fi
kill -TERM "$pid" 2>/dev/null
tries=0
while ours && [ $tries -lt 300 ]; do tries=$((tries + 1)); sleep 0.1; done
if ours; then
    kill -KILL "$pid"; echo "state=killed"
    while ours; do sleep 0.1; done
else
    echo "state=stopped"
fi
echo "pid=$pid"
rm -f "$record"
"""
PREFLIGHT = """cd "$directory" 2>/dev/null || { echo "missing=directory"; exit 0; }
[ -f cluster/worker.py ] || echo "missing=checkout"
echo "free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')"
if [ -x "$python" ]; then
    "$python" - <<'PYTHON' 2>&1 | tail -n 1 | sed 's/^/python=/'
import sys
if sys.version_info < (3, 11):
    print("old %d.%d" % sys.version_info[:2])
else:
    from importlib.util import find_spec
    absent = [name for name in ("fastapi", "httpx", "numpy", "pydantic", "uvicorn") if find_spec(name) is None]
    if absent:
        raise SystemExit("it lacks " + ", ".join(absent))
    from cluster.wire import API
    print("ok %d.%d.%d api %d" % (*sys.version_info[:3], API))
PYTHON
else
    echo "missing=python"
fi
if [ "$engine" = mlx ]; then
    [ -x "$python" ] && "$python" -c 'import importlib.metadata as m; print("mlx=" + m.version("mlx"))' 2>/dev/null \\
        || echo "missing=mlx"
elif [ -x "$vllm" ]; then
    "$(dirname "$vllm")/python" -c 'import importlib.metadata as m; print("vllm=" + m.version("vllm"))' 2>/dev/null \\
        || echo "missing=vllm-version"
else
    echo "missing=vllm"
fi
case $model in
    /*|./*|../*) [ -f "$model/config.json" ] || echo "missing=model";;
    *) [ -f "$model/config.json" ] || [ ! -d "$model" ] || echo "missing=model";;
esac
if [ ! -r "$token" ]; then echo "missing=token"
elif [ ! -s "$token" ]; then echo "missing=token-content"
elif [ -n "$(find -H "$token" -perm -040 -o -perm -004)" ]; then echo "missing=token-privacy"
fi
if ours; then echo "running=$pid"; fi
"""
FOLLOW = """tail -n 20 -F "$log" 2>/dev/null &
tail=$!
while read -r _; do :; done  # the input ends with the connection, and a tail that has nothing to say would not
kill "$tail"
"""


def script(host: HostConfig, body: str) -> str:
    """A whole script for a host: its values, then ``body``; its words are those of the worker's command."""
    state = f"{host.directory.rstrip('/')}/.cluster/worker-{host.listen_port}"
    values = {
        "directory": host.directory,
        "state": state,
        "record": f"{state}/pid",
        "log": f"{state}/log",
        "python": host.python,
        "engine": host.engine,
        "vllm": host.vllm or "",
        "model": host.model,
        "token": host.token_file,
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    lines.append("set -- " + " ".join(map(shlex.quote, host.worker_command())))
    return "\n".join(lines) + "\n" + BEGAN + body


def answers(text: str) -> dict[str, list[str]]:
    """``name=value`` lines that a script printed, in order; anything else, a login message say, is left out."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and name.replace("_", "").isalpha():
            found.setdefault(name, []).append(value)
    return found


WRONG = {
    "directory": "there is no folder {host.directory}; clone the project there",
    "checkout": "{host.directory} is no checkout of this project (no cluster/worker.py); clone the project there",
    "python": "there is no interpreter {host.python}; run `make install` in {host.directory}",
    "mlx": "MLX is not installed for {host.python}; run `make install` in {host.directory}",
    "vllm": "there is no executable {host.vllm}; install vLLM in an environment of its own, and name its bin/vllm",
    "vllm-version": "the environment of {host.vllm} does not have the package vllm; install it there",
    "model": "{host.model} has no config.json; copy the model folder there",
    "token": "the token file {host.token_file} cannot be read; copy it there (mode 600)",
    "token-content": "the token file {host.token_file} is empty; write the token into it",
    "token-privacy": "others can read the token file {host.token_file}; run chmod 600 on it",
}
"""What each ``missing`` of `PREFLIGHT` means."""


def preflight_problems(host: HostConfig, found: dict[str, list[str]]) -> list[str]:
    """What has to be mended on a host before a worker can run there."""
    problems = [WRONG[what].format(host=host) for what in found.get("missing", ()) if what in WRONG]
    python = found.get("python", ["it says nothing"])[-1]
    if {"directory", "python"} & set(found.get("missing", ())):
        pass  # said above
    elif python.startswith("old "):
        problems.append(f"{host.python} is Python {python[4:]}; the worker needs 3.11 or later")
    elif not python.startswith("ok"):
        problems.append(
            f"{host.python} cannot run the worker ({python}); run `make install` in {host.directory}"
        )
    elif " api " in python and not python.endswith(f" api {API}"):
        there = python.rpartition(" ")[2]
        problems.append(
            f"its checkout speaks version {there} of the protocol and this one {API}; update both"
        )
    free = found.get("free_kb", [""])[-1]
    if free.isdecimal() and int(free) * 1024 < host.free_gb * 1e9:
        problems.append(
            f"{int(free) * 1024 / 1e9:.1f} GB are free in {host.directory}, less than free_gb {host.free_gb:g}; "
            "make room, or lower free_gb"
        )
    if not found:
        problems.append("the preflight answered nothing; is /bin/sh there?")
    return problems

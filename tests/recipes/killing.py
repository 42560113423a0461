"""Recipes killed at a chosen moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from .programs import ROOT

FORKED = """
import json, os, sys
from mlx_sumrl.options.command_line import exit_code_of
from recipes.RECIPE import main
for line in sys.stdin:
    process = os.fork()
    if process == 0:
        os.dup2(os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        code = exit_code_of(lambda: main(json.loads(line)))
        sys.stdout.flush()
        os._exit(code)
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


class Killer:
    """Runs the recipe in a process of its own, and kills that at the n-th event of a kind.

    Each process is a fork of one that has imported everything, which saves the second that imports take.
    """

    def __init__(self, folder: Path, recipe: str) -> None:
        self.process = 0
        self.kind, self.after = "", 0
        self.armed = threading.Event()
        self.lock = threading.Lock()
        self.parent = subprocess.Popen(
            [sys.executable, "-c", FORKED.replace("RECIPE", recipe)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, kind: str, number: int) -> None:
        self.armed.wait()
        with self.lock:
            if kind != self.kind:
                return
            self.after -= 1
            if self.after == 0:
                os.kill(self.process, signal.SIGKILL)

    def run(self, kind: str, after: int, argv: list[str]) -> int:
        """The exit code."""
        assert self.parent.stdin is not None
        assert self.parent.stdout is not None
        self.armed.clear()
        self.parent.stdin.write(json.dumps(argv) + "\n")
        self.parent.stdin.flush()
        self.process, self.kind, self.after = int(self.parent.stdout.readline()), kind, after
        self.armed.set()
        return int(self.parent.stdout.readline())

    def close(self) -> None:
        self.parent.communicate(timeout=60)

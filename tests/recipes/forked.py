"""Recipes as processes that are forked from one which has imported everything: importing takes longer than a tiny job.

Nothing of MLX has run before the fork. One process at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Self

from tests.recipes.programs import ROOT

PROGRAM = """
import json, os, runpy, sys
import recipes.grpo, recipes.sft, transformers, mlx_lm.models.qwen2

for line in sys.stdin:
    recipe, folder, log, *argv = json.loads(line)
    process = os.fork()
    if process == 0:
        os.chdir(folder)
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.argv = [recipe, *argv]
        runpy.run_module(f"recipes.{recipe}", run_name="__main__")
        os._exit(0)  # the last recipes end by SystemExit; never back into the loop
    print(process, flush=True)
    _, status = os.waitpid(process, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Forked:
    """A recipe that runs."""

    def __init__(self, process: int, log: Path, answers: IO[str]) -> None:
        self.process = process
        self._log, self._answers = log, answers
        self._code: int | None = None

    def said(self) -> str:
        """So far, on stdout and stderr."""
        return self._log.read_text()

    def kill(self) -> None:
        """SIGKILL; it may have ended already."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)

    def ended(self, timeout: float) -> int | None:
        """Its return code, minus the signal that ended it; None while it goes on after ``timeout`` seconds."""
        if self._code is None and select.select([self._answers], [], [], timeout)[0]:
            self._code = int(self._answers.readline())
        return self._code


class ForkedRecipes:
    """What recipes are forked from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parent = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self._started = 0

    def start(self, recipe: str, *argv: str) -> Forked:
        """``python -m recipes.RECIPE ARGV`` in the folder, once the one before has ended."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._started += 1
        log = self.folder / f"log-{self._started}.txt"
        log.touch()
        print(json.dumps([recipe, str(self.folder), str(log), *argv]), file=self._parent.stdin, flush=True)
        return Forked(int(self._parent.stdout.readline()), log, self._parent.stdout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._parent.kill()
        self._parent.communicate()

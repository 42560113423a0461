"""A program of one's own, run in a process that never outlives this one, its output in a log.

Invariant: Ctrl-C in a terminal does not reach it, since this process says when it stops; however this process ends, so
does the program (`cluster.keeper`), at once: what it has on disk is good for going on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.engine_process import KEEPER

ROOT = Path(__file__).resolve().parents[1]
"""Where `python -m recipes.NAME` finds them, wherever this process was started."""
GRACE_S = "0"
"""Between asking and ending it once this process is gone: what is left of a step is not worth an orphan."""
TAIL = 1 << 14
"""Bytes of a log in which its last lines are looked for."""


class KeptProgram:
    """``python -m recipes.NAME ...``, running or ended."""

    def __init__(self, words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        """Start ``python -m`` with these words; what it says is added to ``log``. Raises OSError.

        ``environment`` holds variables that it has where this process has none of that name.
        """
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        found = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        with log.open("ab") as output:
            self._began = output.tell()
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", str(KEEPER), GRACE_S, sys.executable, "-m", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
                env={**(environment or {}), **os.environ, "PYTHONPATH": os.pathsep.join(found)},
            )
        assert self._keeper.stdout is not None
        told = self._keeper.stdout.readline()
        if not told.strip().isdigit():
            self._keeper.wait()
            raise OSError(self.last_words() or f"{sys.executable} cannot be started")
        self.pid = int(told)

    def poll(self) -> int | None:
        """The exit code, 128 + signal when it was killed; None while it runs."""
        return self._keeper.poll()

    def ask_to_stop(self) -> None:
        """As Ctrl-C does: a training run finishes its step and saves."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                # It alone: a process that scores for it would take the signal for its end, in the middle of the step.
                os.kill(self.pid, signal.SIGTERM)

    def end(self) -> None:
        """Kill it, if it runs."""
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.close()
        self._keeper.stdout.close()
        self._keeper.wait()

    def last_words(self, lines: int = 5) -> str:
        """The end of what it has said."""
        with self.log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(self._began, file.tell() - TAIL))
            said = file.read().decode("utf-8", "replace").strip().splitlines()
        return "\n".join(said[-lines:])

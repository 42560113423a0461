"""One check of a machine, and ways to make one that cannot hang."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warn", "mend"]


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    found: str
    verdict: Verdict
    advice: str = ""
    """What to do, where something is to be done."""


def within(seconds: float, work: Callable[[], Check], otherwise: Check) -> Check:
    """What ``work`` returns, or ``otherwise`` when it takes too long or fails."""
    results: list[Check] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            results.append(Check(otherwise.name, first_line(error), otherwise.verdict, otherwise.advice))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else otherwise


def output_of(command: list[str]) -> str:
    """What a small command prints; empty when it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def first_line(error: BaseException) -> str:
    """The first line of its message, or its name."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__

"""Measurements in processes of their own, and what is made of them: medians, spread, the state of the machine.

Invariant: no measurement shares a process with another, so neither compiled functions, nor a filled memory cache,
nor the first user of a BLAS can favour one side. Never imports mlx.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mlx_sumrl import blas
from mlx_sumrl.errors import UserError

MARK = "MEASURED"
Numbers = dict[str, float]
T = TypeVar("T")


def measured(
    module: str, task: dict[str, Any], seconds: float = 1800.0, aloud: bool = False
) -> dict[str, Any]:
    """What ``python -m module --worker TASK`` measured; `deliver` prints it there. Raises `UserError`.

    ``aloud``: what the worker says on standard error is heard at once, for work that takes long.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, "--worker", json.dumps(task)],
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.PIPE,
            stderr=None if aloud else subprocess.PIPE,
            text=True,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{module} {_named(task)} did not end within {seconds:.0f} s") from error
    for line in reversed(done.stdout.splitlines()):
        if line.startswith(MARK):
            result: dict[str, Any] = json.loads(line.removeprefix(MARK))
            return result
    complaint = (done.stderr or "").strip().splitlines() or [f"ended with code {done.returncode}"]
    raise UserError(f"{module} {_named(task)} measured nothing: {complaint[-1]}")


@dataclass
class Taken:
    """What the processes of several variants measured."""

    results: dict[str, list[dict[str, Any]]]
    """Of each variant, one from each of its processes."""
    load: tuple[float, float]
    """The machine's lowest and highest load after a process."""


def taken_in_turn(
    module: str, variants: Sequence[str], repeats: int, task: Callable[[str], dict[str, Any]]
) -> Taken:
    """Every variant measured ``repeats`` times, in alternating order. Raises `UserError`.

    ``task`` is what the worker is asked besides its ``variant``.
    """
    results: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
    loads = []
    for variant in alternating(variants, repeats):
        results[variant].append(measured(module, {"variant": variant, **task(variant)}))
        loads.append(load_now())
    return Taken(results, (min(loads), max(loads)))


def deliver(result: dict[str, Any]) -> None:
    """Hand a worker's result to the process that started it."""
    print(MARK + json.dumps(result), flush=True)


def alternating(variants: Sequence[T], repeats: int) -> Iterator[T]:
    """Each variant ``repeats`` times, forwards and backwards in turn, so that a slow drift hits all alike."""
    for repeat in range(repeats):
        yield from variants if repeat % 2 == 0 else variants[::-1]


def summary(values: Sequence[float]) -> Numbers:
    """Median, lowest and highest of all measurements, and how many there were."""
    return {
        "median": statistics.median(values),
        "lowest": min(values),
        "highest": max(values),
        "n": len(values),
    }


def summaries(parts: Iterable[Mapping[str, float]], quantities: Sequence[str]) -> dict[str, Numbers]:
    """The summary of each quantity over all parts."""
    parts = list(parts)
    return {name: summary([part[name] for part in parts]) for name in quantities}


def load_now() -> float:
    """How busy the machine is: processes that want to run, over the last minute."""
    return round(os.getloadavg()[0], 2)


def machine() -> dict[str, Any]:
    """Where the numbers come from, and how busy it was with other things at the start."""
    return {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "blas": blas.LOADED or "the one that MLX brings",
        "python": platform.python_version(),
        "mlx": importlib.metadata.version("mlx"),
        "mlx_lm": importlib.metadata.version("mlx-lm"),
        "load_at_start": load_now(),
    }


def shown(numbers: Numbers, scale: float = 1.0, digits: int = 2) -> str:
    """``median (lowest-highest)``."""
    median, lowest, highest = (numbers[name] * scale for name in ("median", "lowest", "highest"))
    return f"{median:.{digits}f} ({lowest:.{digits}f}-{highest:.{digits}f})"


def _named(task: dict[str, Any]) -> str:
    return str(task.get("variant", ""))

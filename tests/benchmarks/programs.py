"""Measuring programs run as a user runs them, and what their reports and tables have in common."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType


def run(name: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--toy", "--json", *arguments],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["held_equal"]
    assert report["machine"]["cores"] == os.cpu_count()
    return report


def text_of(table: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=250)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def check_spread(numbers: dict[str, float], n: int) -> None:
    assert numbers["n"] == n
    assert 0 < numbers["lowest"] <= numbers["median"] <= numbers["highest"]

"""What a tracker is. Never imports mlx."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

STAGE = "stage"
"""The one metric that is text."""


class Tracker(Protocol):
    """Shows a run's numbers. Any method may raise: whoever calls it goes on without it."""

    def start(self, config: Mapping[str, Any], name: str) -> None:
        """Before the first row: the run's options as plain JSON values, and its name. Also where a run goes on."""
        ...

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """One row of metrics.jsonl; steps rise within a process. After resuming, steps come again that were logged
        before: they must not be shown twice."""
        ...

    def finish(self) -> None:
        """The process is done with the run; nothing follows."""
        ...


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What of a row can be drawn: finite numbers, without ``step`` itself. Yes and no are 1 and 0."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }

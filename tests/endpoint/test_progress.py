"""The line that is shown while a server is asked."""

from __future__ import annotations

import io

from rich.console import Console

from mlx_sumrl.endpoint.asking import Asked
from mlx_sumrl.endpoint.ledger import Spent
from mlx_sumrl.endpoint.progress import AskingProgress


def test_a_second_round_has_a_rate_of_its_own() -> None:
    """Ten answers in 20 s, then, of another ten, two in 1 s: 4 s are left for the eight."""
    now = [0.0]
    said = io.StringIO()
    progress = AskingProgress(Console(file=said, width=200), every_seconds=0, clock=lambda: now[0])
    with progress:
        now[0] = 20
        progress.show(Asked(10, 10, answered=10), Spent())
        now[0] = 21
        progress.show(Asked(10, 2, answered=2), Spent())
    first, second = said.getvalue().splitlines()
    assert "30.0 answers/min" in first
    assert "2.0 answers/s" in second
    assert second.endswith("ETA 0:04")

"""curves.svg in a run's folder, drawn again as the run goes on. Never imports mlx.

Invariant: drawing costs a run little and never ends it. It is done between steps, at most every so many seconds and
for a small share of the time; the first time it fails there is one note, and none is drawn after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from mlx_sumrl.config.named_run import CurvesConfig
from mlx_sumrl.reporting.curves import draw, read_curves, save

CURVES = "curves.svg"
PATIENCE = 50
"""Between two drawings pass at least so many times the seconds that the last one took: 2 % of a run at most."""


class CurveFile:
    """Draws a run's curves when it is time to."""

    def __init__(
        self,
        folder: Path,
        options: CurvesConfig,
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = folder / CURVES
        self._options = options
        self._note = note
        self._clock = clock
        self._next = clock() + options.every_s
        self._wanted = options.draw

    def update(self, *, ends: bool = False) -> None:
        """There is something new to see; where a phase ``ends``, it is drawn in any case."""
        started = self._clock()
        if not self._wanted or (started < self._next and not ends):
            return
        try:
            save(draw([read_curves(self.path.parent)]), self.path)
        except Exception as error:  # whatever matplotlib, its fonts or the disk have: the run is worth more
            self._wanted = False
            said = " ".join(str(error).split())[:200] or type(error).__name__
            self._note(f"{self.path} cannot be drawn ({said}); the run goes on without it")
        ended = self._clock()
        self._next = ended + max(self._options.every_s, PATIENCE * (ended - started))

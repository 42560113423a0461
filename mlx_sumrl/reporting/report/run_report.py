"""report.html in a run's folder, when the run ends. Never imports mlx.

Invariant: the run's results are on disk before, and no failure here takes anything from them: it is one note.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def leave_report(folder: Path, wanted: bool, note: Callable[[str], None]) -> Path | None:
    """Write it where it is ``wanted``; its path, or None where there is none."""
    if not wanted:
        return None
    try:
        from mlx_sumrl.reporting.report.writing import report_of_run  # scipy and matplotlib take seconds

        return report_of_run(folder)
    except Exception as error:  # whatever fonts, disks or half a file have: the run is worth more
        said = " ".join(str(error).split())[:200] or type(error).__name__
        note(f"{folder / 'report.html'} cannot be written ({said}); the run is whole without it")
        return None

"""The trackers of one run. Never imports mlx.

Invariant: none of them ends a run. One that is not installed or cannot start is an error before training; one that
fails later is said once, and the run goes on without it.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from mlx_sumrl.config.named_run import TrackerName
from mlx_sumrl.errors import UserError
from mlx_sumrl.reporting.trackers.tensorboard import TensorBoardTracker
from mlx_sumrl.reporting.trackers.tracker import Tracker
from mlx_sumrl.reporting.trackers.weights_and_biases import WandbTracker

KINDS: Mapping[TrackerName, Callable[[Path], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
}
HINTS: Mapping[TrackerName, str] = {"wandb": "run `wandb login`, set WANDB_MODE=offline, or "}
"""What else helps where one cannot start."""


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Raises `UserError` where the package of one is not installed. None is loaded."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder wandb/, as W&B makes them, is no package
            raise UserError(
                f"reporting.trackers has {name}, which is not installed: "
                "run `pip install 'mlx_sumrl[track]'`, or leave it out"
            )


class AttachedTrackers:
    """Started trackers, and whom to tell when one fails."""

    def __init__(self, trackers: Mapping[str, Tracker], note: Callable[[str], None]) -> None:
        self._trackers = dict(trackers)
        self._note = note

    @classmethod
    def started(
        cls,
        names: Sequence[TrackerName],
        run: Path,
        config: Mapping[str, Any],
        note: Callable[[str], None],
    ) -> Self:
        """The trackers of the run in the folder ``run``. Raises `UserError` where one is missing or cannot start."""
        check_trackers(names)
        begun: dict[str, Tracker] = {}
        for name in dict.fromkeys(names):
            tracker = begun[name] = KINDS[name](run)
            try:
                tracker.start(config, run.name)
            except Exception as error:
                for other in begun.values():
                    with contextlib.suppress(Exception):
                        other.finish()
                raise UserError(
                    f"{name} cannot start ({_said(error)}): {HINTS.get(name, '')}leave it out of reporting.trackers"
                ) from error
        return cls(begun, note)

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """A row to each."""
        self._each(lambda tracker: tracker.log(metrics, step))

    def finish(self) -> None:
        """The end of each; may be called again."""
        self._each(lambda tracker: tracker.finish())
        self._trackers.clear()

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                act(tracker)
            except Exception as error:  # a full disk, a lost network, a service's own faults
                del self._trackers[name]
                self._note(f"{name} failed ({_said(error)}); the run goes on without it")


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__

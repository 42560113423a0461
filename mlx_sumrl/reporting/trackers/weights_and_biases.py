"""Weights & Biases, set up as its users know it: WANDB_PROJECT, WANDB_MODE, WANDB_NAME, … Never imports mlx.

Invariant: a run's folder is one W&B run, whose id is in wandb.json; no step is sent to it twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_sumrl.reporting.json_files import write_json
from mlx_sumrl.reporting.trackers.tracker import STAGE, numbers

FILE = "wandb.json"
PROJECT = "mlx_sumrl"
"""Where WANDB_PROJECT says nothing else."""


class WandbTracker:
    """Sends rows to W&B, or keeps them below the run's folder with WANDB_MODE=offline.

    W&B cannot take a step back. After resuming, the steps between the checkpoint and the end are trained again, to the
    same numbers; those that W&B has are not sent to it again.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run
        self._run: Any = None
        self._sent = -1

    def start(self, config: Mapping[str, Any], name: str) -> None:
        import wandb

        file = self.folder / FILE
        known = json.loads(file.read_text()) if file.is_file() else {}
        self._sent = known.get("step", -1)
        surroundings = os.environ
        self._run = wandb.init(
            id=known.get("id"),
            resume="allow" if known else None,
            project=surroundings.get("WANDB_PROJECT", PROJECT),
            name=surroundings.get("WANDB_NAME", name),
            dir=surroundings.get("WANDB_DIR", str(self.folder)),
            config=dict(config),
            settings=wandb.Settings(console="off"),  # the terminal is the progress line's
        )
        self._remember()

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        if step <= self._sent:
            return
        row: dict[str, Any] = dict(numbers(metrics))
        if isinstance(metrics.get(STAGE), str):
            row[STAGE] = metrics[STAGE]
        self._run.log(row, step=step, commit=True)
        self._sent = step
        self._remember()

    def finish(self) -> None:
        if self._run is not None:
            self._run.finish()

    def _remember(self) -> None:
        write_json(self.folder / FILE, {"id": self._run.id, "step": self._sent})

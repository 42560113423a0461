"""A run in this process: its options, its folder, its trainer, and what it logged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_sumrl.config import RunConfig
from mlx_sumrl.options.tree import merged
from mlx_sumrl.reporting.run_folder import RunFolder
from mlx_sumrl.training.preparation import Prepared, prepare
from mlx_sumrl.training.trainer import Trainer

from .programs import VOWELS, tiny_job


def two_stages(**second: Any) -> list[dict[str, Any]]:
    """Options of two stages; ``second`` goes on top of the second one's."""
    paid = [{"kind": "length"}, {"kind": "repetition"}]
    return [
        {"name": "first", "steps": 3, "rewards": paid},
        {"name": "second", "steps": 3, "rewards": paid, **second},
    ]


class Job:
    """A run in a folder of its own: options, policy and examples, and the rows of its metrics."""

    def __init__(self, folder: Path, changes: Mapping[str, Any]) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "mine.py").write_text(VOWELS)
        paid = [{"kind": "length"}, {"kind": "function", "function": f"{folder / 'mine.py'}:vowels"}]
        one = {
            "stages": [{"name": "only", "steps": 3, "rewards": paid}],
            "sft": None,
            "runs_dir": str(folder),
        }
        self.config = RunConfig.model_validate(merged(tiny_job(one), changes))
        self.run = RunFolder.create(self.config)
        self.notes: list[str] = []
        self.prepared: Prepared = prepare(self.config, self.run.path, self.notes.append)
        self.policy = self.prepared.policy

    def trainer(self, sampler: Any = None) -> Trainer:
        return Trainer(self.policy, self.config, sampler=sampler, run=self.run)

    def train(self, sampler: Any = None) -> list[dict[str, Any]]:
        """All phases; the rows of metrics.jsonl."""
        trainer = self.trainer(sampler)
        if self.config.sft:
            trainer.sft(self.prepared.taught, self.config.sft)
        for phase in self.config.phases:
            trainer.phase(phase, self.prepared.train, self.prepared.shortened)
        return self.metrics()

    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run.path / "metrics.jsonl").read_text().splitlines()]

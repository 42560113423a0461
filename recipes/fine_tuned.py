"""Supervised fine-tuning of what was prepared, from where the run stands to what is exported."""

from __future__ import annotations

from mlx_sumrl.config import SftRunConfig
from mlx_sumrl.reporting.progress import Progress
from mlx_sumrl.reporting.run_folder import RunFolder
from mlx_sumrl.training.supervised_preparation import PreparedSft
from mlx_sumrl.training.supervised_trainer import SupervisedTrainer


def fine_tuned(
    config: SftRunConfig, prepared: PreparedSft, run: RunFolder, progress: Progress
) -> tuple[SupervisedTrainer, int]:
    """The trainer at its end, and the step whose weights its policy has: the best one where that is asked for."""
    trainer = SupervisedTrainer(
        prepared.policy, config, prepared.train, prepared.held_out, run=run, progress=progress
    )
    if trainer.restore():
        progress.note(f"going on after step {trainer.state.step}")
    trainer.train()
    best = trainer.take_best() if config.export.best else None
    return trainer, trainer.state.step if best is None else best

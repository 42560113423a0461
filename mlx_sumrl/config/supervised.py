"""Options: supervised fine-tuning as a job of its own."""

from __future__ import annotations

import math
from typing import Self

from pydantic import Field, model_validator

from mlx_sumrl.config.data import DataConfig
from mlx_sumrl.config.masking import MaskingConfig
from mlx_sumrl.config.named_run import CheckpointConfig, ExportConfig, NamedRunConfig, RunName
from mlx_sumrl.config.policy import PolicyConfig
from mlx_sumrl.config.rollouts import LengthConfig
from mlx_sumrl.config.room import Room
from mlx_sumrl.config.training import SftOptimizerConfig


class SupervisedConfig(Room):
    """How long, in which portions, and towards what. Give exactly one of `epochs` and `steps`."""

    epochs: float | None = Field(default=None, gt=0)
    """Times that each row is learned; parts of one are fine."""
    steps: int | None = Field(default=None, gt=0)
    """Optimiser steps."""
    batch_size: int = Field(default=16, gt=0)
    """Rows per step."""
    micro_batch_tokens: int = Field(default=4096, gt=0)
    """Token positions in one forward and backward pass; the gradient is the same whatever it is."""
    max_tokens: int = Field(default=1024, gt=1)
    """Most tokens of a row, prompt and answer together; less where the model reads less."""
    own_length: bool = False
    """Where the instruction says `{target_length}`, tell each row the length that its own answer has, in the unit of
    `length`, in place of `length.target`: what the number means is then learned here."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each target that is spread evenly over the vocabulary. Losses on held-out rows are without it."""

    def total_steps(self, examples: int) -> int:
        """Steps of a run on so many rows; the last row of the last epoch is always learned."""
        if self.steps is not None:
            return self.steps
        if self.epochs is None:
            raise ValueError("neither epochs nor steps are given")
        # 0.1 x 30 rows are 3, though the product is a little more.
        return max(math.ceil(self.epochs * examples / self.batch_size - 1e-9), 1)


class SftEvaluationConfig(Room):
    """What is measured on held-out rows: before the first step, every so many steps, and after the last."""

    every: int = Field(default=50, gt=0)
    """Steps between evaluations."""
    train_rows: int = Field(default=64, ge=0)
    """Training rows whose loss is measured in the same way, without dropout and smoothing: the gap to the held-out
    ones is what was learned by heart. 0 leaves it out."""
    samples: int = Field(default=3, ge=0)
    """Held-out rows that are answered, greedily, at each evaluation; they go to evaluation/step-*.json."""
    sample_tokens: int = Field(default=128, gt=1)
    """Most tokens of such an answer, the stop token counted."""


class EarlyStoppingConfig(Room):
    """When to stop before the last step. What is exported is the best evaluation's, with or without this."""

    patience: int | None = Field(default=None, gt=0)
    """Evaluations in a row without improvement after which training ends; null never ends it early."""
    min_delta: float = Field(default=0.0, ge=0)
    """Nats per token by which the held-out loss has to fall below the last improvement to count as one."""


class SftExportConfig(ExportConfig):
    """What is written to export/ when the run ends."""

    best: bool = True
    """Export the policy of the lowest held-out loss; off, or without held-out rows, that of the last step."""
    dequantize: bool = True
    """Of a quantised base: write the fused model in policy.dtype, which is what was trained. Off, it is packed into
    as many bits as the base, and what is smaller than a gap between two codes is lost (a summariser of 5 M parameters
    in 4 bits: held-out loss 1.25 as trained, 1.61 packed again; in 8 bits 1.25 both)."""


class SftRunConfig(NamedRunConfig):
    """A whole run of supervised fine-tuning."""

    name: RunName = "sft"
    policy: PolicyConfig
    data: DataConfig = DataConfig()
    length: LengthConfig = LengthConfig()
    masking: MaskingConfig = MaskingConfig()
    sft: SupervisedConfig = SupervisedConfig()
    optimizer: SftOptimizerConfig = SftOptimizerConfig()
    evaluation: SftEvaluationConfig = SftEvaluationConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    export: SftExportConfig = SftExportConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        epochs, steps = self.sft.epochs, self.sft.steps
        if (epochs is None) == (steps is None):
            said = "neither is there" if epochs is None else f"there are {epochs:g} epochs and {steps} steps"
            raise ValueError(f"give exactly one of sft.epochs and sft.steps: {said}")
        if self.sft.own_length:
            self.data.check_tells_length("sft.own_length")
        if self.length.targets:
            raise ValueError(
                "length.targets is for runs that reward a length: give length.target, or sft.own_length, which tells "
                "each row the length of its own answer"
            )
        held_out = self.data.evaluation is not None or self.data.grammar is not None
        if self.early_stopping.patience is not None and not held_out:
            raise ValueError(
                f"early_stopping.patience {self.early_stopping.patience} needs held-out rows: name them by "
                "data.evaluation, or leave it out"
            )
        return self


class RateRangeConfig(Room):
    """A learning rate range test (Smith 2015, arXiv:1506.01186)."""

    lowest: float = Field(default=1e-6, gt=0)
    """Rate of the first step."""
    highest: float = Field(default=1.0, gt=0)
    """Rate of the last step; the test ends before, where the loss has blown up."""
    steps: int = Field(default=100, ge=10)
    """Steps from the lowest to the highest rate, the same factor between any two."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.lowest * 10 > self.highest:
            raise ValueError(
                f"a range from {self.lowest:g} to {self.highest:g} is too narrow to find a rate in: "
                "give range.highest at least ten times range.lowest"
            )
        return self

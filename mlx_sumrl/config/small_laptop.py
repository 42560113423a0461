"""Options: a large model on a small laptop, by adapters on a base in few bits."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from mlx_sumrl.config.comparison import IntervalConfig
from mlx_sumrl.config.named_run import RunName
from mlx_sumrl.config.room import Room
from mlx_sumrl.config.supervised import SftRunConfig


class QuantizeRoom(Room):
    """The base that adapters are trained on."""

    bits: Literal[4, 8] = 4
    """Bits of a weight."""
    group_size: Literal[32, 64, 128] = 64
    """Weights that share a scale and a bias."""


class BeforeAfterConfig(IntervalConfig):
    """How the policy is measured before and after, and how sure the difference is."""

    max_tokens: int = Field(default=96, gt=1)
    """Most tokens of a summary, the stop token counted."""
    batch_size: int = Field(default=4, gt=0)
    """Prompts decoded at once; more need more memory."""


class SmallLaptopConfig(SftRunConfig):
    """Quantise, measure, train adapters, fuse, measure again."""

    name: RunName = "small_laptop"
    quantize: QuantizeRoom = QuantizeRoom()
    comparison: BeforeAfterConfig = BeforeAfterConfig()

    base: ClassVar[str] = "base"
    """Folder of the quantised copy, below the run's."""

    def on_base(self, run: Path) -> Self:
        """The options with the quantised copy in the folder ``run`` as the model."""
        policy = self.policy.model_copy(update={"model": str(run / self.base)})
        return self.model_copy(update={"policy": policy})

    @model_validator(mode="after")
    def _check_comparison(self) -> Self:
        if self.policy.model is None:
            raise ValueError("policy.model is missing: name a model folder or a hub id to quantise")
        if self.policy.tuning == "full":
            raise ValueError(
                "policy.tuning full cannot train a base in few bits: set it to lora or dora, or use recipes.sft"
            )
        if self.data.evaluation is None:
            raise ValueError(
                "data.evaluation is missing: name held-out rows, since the difference is measured on them"
            )
        if not self.export.fused:
            raise ValueError("export.fused false leaves nothing to measure after training: leave it out")
        return self

"""Options: a whole run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from mlx_sumrl.config.data import DataConfig
from mlx_sumrl.config.policy import PolicyConfig
from mlx_sumrl.config.rollouts import LengthConfig, SamplingConfig
from mlx_sumrl.config.room import Room
from mlx_sumrl.config.stages import StageConfig
from mlx_sumrl.config.training import GrpoConfig, OptimizerConfig, SftConfig


class CheckpointConfig(Room):
    """When the run is saved."""

    every: int = Field(default=10, gt=0)
    """Steps between checkpoints."""
    keep: int = Field(default=2, gt=0)
    """Checkpoints kept; older ones are removed once a newer one is whole."""


class ReportingConfig(Room):
    """What the run writes down."""

    rollouts_every: int = Field(default=10, gt=0)
    """Steps between records of prompts, completions and rewards in rollouts.jsonl."""
    rollout_groups: int = Field(default=1, gt=0)
    """Groups written each time."""


class EvaluationConfig(Room):
    """How the policy is evaluated before, between and after the stages: greedily."""

    batch_size: int = Field(default=32, gt=0)
    """Prompts decoded at once."""
    samples: int = Field(default=3, ge=0)
    """Sample summaries shown at the end."""
    length_matched_baseline: bool = False
    """Also evaluate the untrained policy made to write exactly `length.target` tokens."""


class ExportConfig(Room):
    """What is written to export/ when the run ends."""

    fused: bool = True
    """A model folder that mlx-lm and Hugging Face tokenizers load."""
    adapter: bool = True
    """With lora or dora: an mlx_lm adapter folder, and a PEFT one (LoRA only)."""


class RunConfig(Room):
    """A whole run."""

    name: str = Field(default="grpo", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder below `runs_dir`; a folder that holds another run is refused."""
    runs_dir: Path = Path("runs")
    """Where runs live."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """One seed gives one run, bit for bit, on one machine."""
    policy: PolicyConfig
    data: DataConfig = DataConfig()
    length: LengthConfig = LengthConfig()
    sampling: SamplingConfig = SamplingConfig()
    sft: SftConfig | None = None
    grpo: GrpoConfig = GrpoConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    stages: tuple[StageConfig, ...] = ()
    """The curriculum; each recipe brings its own when this is left out."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    reporting: ReportingConfig = ReportingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    export: ExportConfig = ExportConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        longest = self.length.target + self.length.tolerance + 1
        if self.length.target + 1 > self.sampling.max_tokens:
            raise ValueError(
                f"length.target {self.length.target} can never be reached with sampling.max_tokens "
                f"{self.sampling.max_tokens}: raise it to at least {longest} (target, tolerance and the stop token)"
            )
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages have the same name ({', '.join(names)}); give each its own")
        if "sft" in names:
            raise ValueError("a stage cannot be named 'sft': that is the supervised phase before the stages")
        return self

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.runs_dir / self.name

    def to_json(self) -> dict[str, Any]:
        """Every resolved option as plain JSON values."""
        return self.model_dump(mode="json")

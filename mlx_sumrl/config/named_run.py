"""Options: what every run has, whatever it trains: a folder of its own, checkpoints, and what it leaves for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mlx_sumrl.config.room import Room

RunName = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Folder below `runs_dir`; a folder that holds another run is refused.",
    ),
]
"""Each job has a default of its own."""

TrackerName = Literal["tensorboard", "wandb"]


class CheckpointConfig(Room):
    """When the run is saved."""

    every: int = Field(default=10, gt=0)
    """Steps between checkpoints."""
    keep: int = Field(default=2, gt=0)
    """Checkpoints kept; older ones are removed once a newer one is whole."""


class CurvesConfig(Room):
    """When curves.svg is drawn: at evaluations and checkpoints, and whenever a phase ends."""

    draw: bool = True
    """Draw it at all; `python -m recipes.curves` does it later, too."""
    every_s: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    """Seconds between two drawings, at least; more where one takes more than a second."""


class ExportConfig(Room):
    """What is written to export/ when the run ends."""

    fused: bool = True
    """A model folder that mlx-lm and Hugging Face tokenizers load."""
    adapter: bool = True
    """With lora or dora: an mlx_lm adapter folder, and a PEFT one (LoRA only)."""
    gguf: bool = False
    """A GGUF file for llama.cpp, and a Modelfile for Ollama; of families that mlx-lm converts (see
    mlx_sumrl.policy.gguf)."""
    license: str | None = None
    """Licence for the model cards, as `apache-2.0`; without it they say that it is unknown."""
    language: str | None = None
    """Language for the model cards, as `en`."""


class TrackingConfig(Room):
    """Where the run's numbers are shown beside metrics.jsonl."""

    trackers: tuple[TrackerName, ...] = ()
    """`tensorboard` writes to tensorboard/ in the run's folder; `wandb` is set up by its own variables (WANDB_PROJECT,
    WANDB_MODE=offline). Both need `pip install 'mlx_sumrl[track]'`."""


class NamedFolderConfig(Room):
    """What is written down in a folder of its own: a run, or several."""

    name: RunName
    runs_dir: Path = Path("runs")
    """Where runs live."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.runs_dir / self.name

    @property
    def trackers(self) -> tuple[TrackerName, ...]:
        """What shows its numbers elsewhere."""
        return ()

    def to_json(self) -> dict[str, Any]:
        """Every resolved option as plain JSON values."""
        return self.model_dump(mode="json")


class NamedRunConfig(NamedFolderConfig):
    """A run."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """One seed gives one run, bit for bit, on one machine."""
    curves: CurvesConfig = CurvesConfig()
    reporting: TrackingConfig = TrackingConfig()
    report: bool = True
    """Write report.html when the run ends; `python -m recipes.compare runs/NAME` does it later, too."""

    @property
    def trackers(self) -> tuple[TrackerName, ...]:
        """What shows its numbers elsewhere."""
        return self.reporting.trackers

"""Steps of this library's own `Trainer`, timed by what it reports of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from benchmarks.workload import REWARD
from mlx_sumrl.config import (
    GrpoConfig,
    LengthConfig,
    LoraConfig,
    OptimizerConfig,
    PolicyConfig,
    RewardConfig,
    RunConfig,
    SamplingConfig,
    StageConfig,
)
from mlx_sumrl.data.example import Example
from mlx_sumrl.reporting.progress import SilentProgress

Tuning = Literal["lora", "full"]


class Recorder(SilentProgress):
    """Keeps the metrics of every step."""

    def __init__(self) -> None:
        self.steps: list[Mapping[str, float]] = []

    def update(self, step: int, metrics: Mapping[str, float], status: str = "") -> None:
        """Keep them."""
        self.steps.append(dict(metrics))


def trained_steps(
    folder: str,
    examples: Sequence[Example],
    *,
    group_size: int,
    new_tokens: int,
    tuning: Tuning,
    rank: int,
    alpha: float,
    learning_rate: float,
    steps: int,
    checkpointing: bool,
) -> tuple[list[dict[str, float]], float]:
    """Seconds and peak bytes of each step, and the completion tokens trained on in each, on average."""
    from mlx_sumrl.policy.loading import load_policy
    from mlx_sumrl.training.trainer import Trainer

    stage = StageConfig(
        name="measured", steps=steps, rewards=(RewardConfig(kind="function", function=REWARD),)
    )
    config = RunConfig(
        policy=PolicyConfig(
            model=folder,
            dtype="float32",
            tuning=tuning,
            lora=LoraConfig(rank=rank, alpha=alpha),
            gradient_checkpointing=checkpointing,
        ),
        sampling=SamplingConfig(max_tokens=new_tokens),
        length=LengthConfig(target=1, tolerance=0),
        grpo=GrpoConfig(prompts_per_step=len(examples), group_size=group_size, loss="grpo"),
        optimizer=OptimizerConfig(learning_rate=learning_rate),
        stages=(stage,),
    )
    policy = load_policy(config.policy)
    policy.stop_ids = frozenset()  # nothing ends a completion but its length
    recorder = Recorder()
    Trainer(policy, config, progress=recorder).stage(stage, examples)
    taken = [
        {
            "step": step["time/step"],
            "rollout": step["time/rollout"],
            "train": step["time/step"] - step["time/rollout"],
            "peak": step["memory/peak_gb"] * 1e9,
        }
        for step in recorder.steps
    ]
    return taken, sum(step["tokens"] for step in recorder.steps) / len(recorder.steps)

"""``python -m tests.benchmarks.own_peak FOLDER`` prints two numbers of bytes: the peak of one step as
`benchmarks.measured_step` has it, and as the trainer reports it of its own later steps, whose peak it takes over
everything from sampling to update.

MLX prepares, and allocates for, up to ten operations ahead of the one that runs: how many there are depends on how
threads happen to run. Above its memory limit it waits for each, so with no memory allowed the peak is what has to live
at once; what is left of chance is that something may be freed a little late, so the lowest of several counts.
"""

from __future__ import annotations

import gc
import json
import sys

import mlx_sumrl  # isort: skip  # noqa: F401  (its BLAS comes before MLX)
import mlx.core as mx

from benchmarks.measured_step import IdsAsText, Load, measured_step
from benchmarks.own_steps import Recorder
from benchmarks.workload import REWARD, examples, prompts
from mlx_sumrl.config import (
    GrpoConfig,
    LengthConfig,
    OptimizerConfig,
    PolicyConfig,
    RewardConfig,
    RunConfig,
    SamplingConfig,
    StageConfig,
)
from mlx_sumrl.policy.loading import load_policy
from mlx_sumrl.training.trainer import Trainer

TINY = Load(prompts=1, group_size=3, prompt_tokens=9, new_tokens=5)
"""One prompt: one micro-batch, whose gradients stay in the type of the weights."""
STEPS, DRAWS = 12, 12
"""Of either side the lowest counts."""


def below() -> int:
    """What lives before a step."""
    gc.collect()
    mx.synchronize()
    return mx.get_active_memory()


def measured(folder: str) -> float:
    """By the benchmark."""
    start = below()
    return float(measured_step(folder, TINY, "full", "bfloat16", "none")["peak"] - start)


def own(folder: str) -> float:
    """By the trainer."""
    config = RunConfig(
        policy=PolicyConfig(model=folder, dtype="bfloat16", tuning="full", gradient_checkpointing=True),
        sampling=SamplingConfig(max_tokens=TINY.new_tokens),
        length=LengthConfig(target=1, tolerance=0),
        grpo=GrpoConfig(prompts_per_step=TINY.prompts, group_size=TINY.group_size),
        optimizer=OptimizerConfig(moments="bfloat16"),
        stages=(
            StageConfig(
                name="measured", steps=STEPS + 1, rewards=(RewardConfig(kind="function", function=REWARD),)
            ),
        ),
    )
    start = below()
    policy, recorder = load_policy(config.policy), Recorder()
    policy.stop_ids, policy.tokenizer = frozenset(), IdsAsText()
    asked = examples(prompts(TINY.prompts, TINY.prompt_tokens, policy.vocabulary))
    Trainer(policy, config, progress=recorder).stage(config.stages[0], asked)
    return min(step["memory/peak_gb"] for step in recorder.steps[1:]) * 1e9 - start


def main(folder: str) -> None:
    """Both, as one line of JSON."""
    mx.set_cache_limit(0)  # a buffer that is used again may be larger than what lies in it, and counts whole
    mx.set_memory_limit(1)  # nothing is prepared ahead
    measured(folder)  # what a process makes once and keeps
    gc.freeze()  # so that looking for garbage, before each draw, takes no half of it
    lowest = min(measured(folder) for _ in range(DRAWS))
    print(json.dumps([lowest, own(folder)]))


if __name__ == "__main__":
    main(sys.argv[1])

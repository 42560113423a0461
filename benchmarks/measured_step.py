"""One GRPO step taken apart into its phases, each with its peak, by the pieces that `Trainer` puts together.

Invariant: the peak is reset where a phase begins and nowhere else, and between two phases nothing is computed, so
the largest peak of the phases is that of the whole step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

from benchmarks.workload import REWARD, examples, prompts
from mlx_sumrl.config import (
    GrpoConfig,
    LengthConfig,
    OptimizerConfig,
    PolicyConfig,
    RewardConfig,
    SamplingConfig,
    StageConfig,
)
from mlx_sumrl.errors import UserError

PHASES = ("rollout", "gradient", "update")
"""The gradient's holds the reference's log-probabilities, where there is a reference, and the rewards."""
BETA = 0.04
"""Weight of the KL where there is a reference."""
LEARNING_RATE = 2e-6
SEED = 0
UNUSED = 3
"""Ids of special tokens, which no prompt has."""

Tuning = Literal["full", "lora"]
Moments = Literal["bfloat16", "blocks8"]
Reference = Literal["none", "copy", "8bit", "4bit"]


@dataclass(frozen=True)
class Load:
    """The size of the step."""

    prompts: int = 2
    group_size: int = 8
    prompt_tokens: int = 320
    new_tokens: int = 64


@dataclass
class Phase:
    """What a phase took."""

    name: str
    seconds: float
    peak: int
    """Bytes."""
    kept: int
    """Bytes that are still there after it."""


class IdsAsText:
    """In place of a tokenizer: the text of a completion is its ids, so that every one reads differently."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The ids with spaces between."""
        return " ".join(str(token_id) for token_id in token_ids)


def grpo_options(load: Load, reference: Reference) -> GrpoConfig:
    """The step's options."""
    given: dict[str, Any] = {"prompts_per_step": load.prompts, "group_size": load.group_size}
    if reference != "none":
        given |= {"beta": BETA, "reference": reference}
    return GrpoConfig(**given)


def measured_step(
    folder: str, load: Load, tuning: Tuning, moments: Moments, reference: Reference
) -> dict[str, Any]:
    """Phases of one step, whose optimiser has its moments already, and what lies in memory. Raises `UserError`."""
    import mlx.core as mx

    from mlx_sumrl.policy import mlx_internals
    from mlx_sumrl.policy.loading import load_policy
    from mlx_sumrl.rewards.scoring import build_rewards
    from mlx_sumrl.rollouts.local import LocalSampler
    from mlx_sumrl.rollouts.types import Sampling
    from mlx_sumrl.training.advantages import group_advantages
    from mlx_sumrl.training.grpo import grpo_gradient, training_rows
    from mlx_sumrl.training.micro_batch import BatchGradient
    from mlx_sumrl.training.optimizer import Optimizer
    from mlx_sumrl.training.update import Guard, apply_update

    options, sampling = grpo_options(load, reference), SamplingConfig(max_tokens=load.new_tokens)
    kept_by = OptimizerConfig(learning_rate=LEARNING_RATE, moments=moments)
    phases: list[Phase] = []

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        print(f"  {name} ...", end="", file=sys.stderr, flush=True)
        mx.reset_peak_memory()
        begun = time.perf_counter()
        yield
        mx.synchronize()  # a CPU's memory is freed by the thread that computes, which may lag behind
        phases.append(Phase(name, time.perf_counter() - begun, mx.get_peak_memory(), mx.get_active_memory()))
        print(
            f" {phases[-1].seconds:.1f} s, peak {phases[-1].peak / 1e9:.3f} GB", file=sys.stderr, flush=True
        )

    with phase("load"):
        policy = load_policy(
            PolicyConfig(model=folder, dtype="bfloat16", tuning=tuning, gradient_checkpointing=True)
        )
        if options.beta > 0 and tuning == "full":
            policy.take_reference(options.reference)
        policy.stop_ids = frozenset()  # nothing ends a completion but its length
        policy.tokenizer = IdsAsText()
        rewards = build_rewards(
            StageConfig(name="measured", steps=1, rewards=(RewardConfig(kind="function", function=REWARD),)),
            LengthConfig(),
        )
        optimizer, guard = Optimizer(kept_by, SEED), Guard(kept_by.max_bad_steps)
        sampler = LocalSampler(policy)
        ids = prompts(load.prompts, load.prompt_tokens, policy.vocabulary)
    with phase("first update"):  # of zeros, so that the moments are there
        zeros = {name: mx.zeros(array.shape, dtype=array.dtype) for name, array in policy.weights().items()}
        apply_update(policy, optimizer, guard, BatchGradient(0.0, zeros, {}), LEARNING_RATE)
        del zeros
    mx.clear_cache()
    before = mx.get_active_memory()

    with phase("rollout"):
        groups = sampler.sample(
            examples(ids), load.group_size, Sampling(max_tokens=load.new_tokens), seed=SEED
        )
    with phase("gradient"):
        scores = rewards.score(groups)
        advantages = group_advantages(scores.weighted_PGR, scores.weights_R, options)
        gradient = grpo_gradient(policy, training_rows(groups, advantages), options, sampling)
    gradients = _bytes(gradient.gradients)
    with phase("update"):
        metrics = apply_update(policy, optimizer, guard, gradient, LEARNING_RATE)
    if guard.total or advantages.zero_spread or not gradients:
        raise UserError(
            "the measured step was no whole one: a gradient not finite, or a group without a spread"
        )
    return {
        "phases": [asdict(one) for one in phases if one.name in PHASES],
        "peak": max(one.peak for one in phases if one.name in PHASES),
        "before": before,
        "weights": _bytes(mlx_internals.named_arrays(policy.model.parameters())),
        "trained": _bytes(policy.weights()),
        "moments": _bytes(optimizer.state()),
        "gradients": gradients,
        "parameters": sum(a.size for a in mlx_internals.named_arrays(policy.model.parameters()).values()),
        "tokens": sum(len(one.token_ids) for group in groups for one in group.completions),
        "grad_norm": metrics["grad_norm"],
    }


def _bytes(arrays: dict[str, Any]) -> int:
    return sum(int(array.nbytes) for array in arrays.values())

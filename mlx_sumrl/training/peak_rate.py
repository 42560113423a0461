"""The peak step size of a run that names none: what the tuning, the model and the optimiser bear."""

from __future__ import annotations

import math

from mlx_sumrl.config import OptimizerConfig, RunConfig
from mlx_sumrl.policy.policy import Policy

FULL = 1e-5
ADAPTERS = 2e-3
"""Of a model `ADAPTERS_WIDTH` wide, as in the study of ``docs/study.md``."""
ADAPTERS_WIDTH = 256
LION = 0.2
"""Of AdamW's rate, between the third and the tenth that Chen et al. 2023 (arXiv:2302.06675) advise. Not measured."""


def peak_rate(options: OptimizerConfig, policy: Policy) -> float:
    """``options.learning_rate``, or where it is null that of the policy's tuning and width (its hidden size).

    That of adapters falls with the root of the width. Only the rate at 256 was measured here; the root is a guess. It
    comes to 7e-4 at a width of 2,048 and 5e-4 at 4,096. A published sweep of supervised fine-tuning found 1e-3 (2,048:
    Llama-3.2-1B) and between 3e-4 and 1e-3 (4,096: Llama-3.1-8B, Qwen3-8B) best (tinker-cookbook, ``get_lr``).
    """
    if options.learning_rate is not None:
        return options.learning_rate
    adapters = policy.options.tuning != "full"
    rate = ADAPTERS * math.sqrt(ADAPTERS_WIDTH / policy.width) if adapters else FULL
    return LION * rate if options.kind == "lion" else rate


def with_rate(config: RunConfig, policy: Policy) -> RunConfig:
    """The same with the rate that will be used."""
    optimizer = config.optimizer
    if not config.stages or optimizer.learning_rate is not None:
        return config
    known = optimizer.model_copy(update={"learning_rate": peak_rate(optimizer, policy)})
    return config.model_copy(update={"optimizer": known})

"""The tabular policy of the oracle, run through the library's loss in float32."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_sumrl.config import GrpoConfig
from mlx_sumrl.training.loss import LossInputs, LossMetrics, Normalizer, grpo_loss

from .oracle import Floats, LossSpec, TabularBatch, padded

JUNK = -2.5
"""What stands at padding: any finite number has to do, since the mask takes it out."""


def options_of(spec: LossSpec) -> GrpoConfig:
    return GrpoConfig(
        loss=spec.kind,
        correction=spec.correction,
        ratio_level=spec.level,
        epsilon_low=spec.epsilon_low,
        epsilon_high=spec.epsilon_high,
        truncate_at=spec.cap,
        beta=spec.beta,
        kl=spec.kl,
    )


def loss_and_gradient(
    batch: TabularBatch, theta: Floats, spec: LossSpec
) -> tuple[float, Floats, dict[str, float]]:
    """Loss, its gradient with respect to the logits, and the sums for metrics, as `grpo_loss` gives them."""
    contexts = mx.array(padded(batch.contexts, 0).astype(np.int32))
    tokens = mx.array(padded(batch.tokens, 1).astype(np.int32))
    mask = mx.array(padded([[1.0] * len(row) for row in batch.tokens], 0).astype(np.float32))
    normalizer = Normalizer(
        completions=len(batch.tokens), tokens=sum(map(len, batch.tokens)), max_tokens=batch.max_tokens
    )

    def forward(theta: mx.array) -> tuple[mx.array, LossMetrics]:
        table = theta - mx.logsumexp(theta, axis=-1, keepdims=True)
        inputs = LossInputs(
            logprobs_BT=table[contexts, tokens],  # at padding too: a number, and not zero
            sampler_logprobs_BT=mx.array(padded(batch.sampler, JUNK).astype(np.float32)),
            advantages_B=mx.array(batch.advantages, dtype=mx.float32),
            mask_BT=mask,
            reference_logprobs_BT=mx.array(padded(batch.reference, JUNK).astype(np.float32)),
        )
        return grpo_loss(inputs, options_of(spec), normalizer)

    (value, sums), gradient = mx.value_and_grad(forward)(mx.array(theta.astype(np.float32)))
    return (
        value.item(),
        np.array(gradient, dtype=np.float64),
        {name: array.item() for name, array in sums.items()},
    )

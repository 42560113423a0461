"""The GRPO loss: a pure function of log-probabilities and advantages, for the whole family.

Invariant: the loss of a batch is a *sum* over completions, each divided by numbers of the whole batch
(`Normalizer`), so the gradients of any split into micro-batches add up to the gradient of the batch.

The ratio is live: policy now over the policy that *sampled*, from the log-probabilities the sampler wrote down,
never from ones computed again. Per token r_t = p(t) / q(t), or per completion its geometric mean
(GSPO, Zheng et al. 2025, arXiv:2507.18071, eq. 7).

Kinds (loss of N completions with lengths |o_i|, advantages A_i):

========  =======================================================  ==================================
grpo      1/N sum_i 1/|o_i| sum_t                                  Shao et al. 2024, 2402.03300, eq. 3
bnpo      1/(sum_i |o_i|) sum_i sum_t, over the whole batch        token mean
dapo      as bnpo, and epsilon_high 0.28 unless set                Yu et al. 2025, 2503.14476, eq. 8
dr_grpo   1/(N max_tokens) sum_i sum_t, advantages not scaled      Liu et al. 2025, 2503.20783
gspo      as grpo, with the ratio per completion unless set        2507.18071, eq. 5
========  =======================================================  ==================================

Correction of a ratio r away from 1 (`clip` is PPO's, eq. 7 of 1707.06347; `truncate` is a capped importance
weight, as V-trace and CISPO have it; `mask` leaves tokens or completions out):

* clip:      -min(r A, clip(r, 1 - epsilon_low, 1 + epsilon_high) A)
* truncate:  -sg(min(r, c)) A log p
* mask:      -sg(r [1/c <= r <= c]) A log p
* none:      -r A

KL to the reference, d = log p_ref - log p, as a token loss times beta:

* k2:           d^2 / 2; its gradient under samples of the policy itself is that of the *reverse* KL(p || p_ref).
* k3:           exp(d) - d - 1; its gradient there is that of the *forward* KL(p_ref || p).
* k3_weighted:  r_t (exp(d) - d - 1) with the gradient through r_t: that of the *reverse* KL, and under samples of
  another policy too. The default.

(Each is the gradient of the KL of the next token in the contexts that were sampled; how contexts themselves
shift is left out, as everywhere in this family.)

Separate credit. A token is two decisions, log p(t) = log s + log c: s is the probability of what was decided about
stopping (p(stop), or 1 - p(stop) where the text went on), c that of the token given this decision. With `StopInputs`
each has an advantage of its own, and A log p above becomes S log s + A log c, with r as the weight of both; where S = A
the gradient is the one without (the value of `clip` and `none` then counts r A once for each decision). What is lost is
that words have a part in when a text ends; what is won is that the advantage of a length, which is the same for all
words of a text and says nothing about any, does not move them. Our own; see tests/training/test_separate_credit.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from mlx_sumrl.config import GrpoConfig

DAPO_EPSILON_HIGH = 0.28


SUREST = -1e-6
"""log p(stop) is taken to be this at most, so that going on where stopping is certain stays a number."""


@dataclass(frozen=True)
class StopInputs:
    """What is known of stopping, where it has an advantage of its own."""

    logprobs_BT: mx.array
    """log p of any stop token, under the policy now; a gradient goes through it too."""
    stopped_BT: mx.array
    """1 where the completion stopped, 0 where it went on."""
    advantages_B: mx.array
    """Of deciding about stopping."""


@dataclass(frozen=True)
class LossInputs:
    """One micro-batch of B completions, T tokens at most. Everything float32 but the names say what."""

    logprobs_BT: mx.array
    """Under the policy now; the gradient goes through it."""
    sampler_logprobs_BT: mx.array
    """Under the policy that sampled, as the sampler wrote them down."""
    advantages_B: mx.array
    mask_BT: mx.array
    """1 at completion tokens (the stop token is one), 0 at padding."""
    reference_logprobs_BT: mx.array | None = None
    """Under the reference; needed when beta > 0."""
    stops: StopInputs | None = None
    """Where stopping has an advantage of its own; ``advantages_B`` is then that of the rest."""


@dataclass(frozen=True)
class Normalizer:
    """What the sums of a micro-batch are divided by: numbers of the whole batch."""

    completions: int
    """N"""
    tokens: int
    """Completion tokens of the whole batch, stop tokens included."""
    max_tokens: int
    """The most a completion may have, for dr_grpo."""


LossMetrics = dict[str, mx.array]
"""Sums over the micro-batch's tokens, to be added up and divided by their number: see `token_means`."""


def grpo_loss(
    inputs: LossInputs, options: GrpoConfig, normalizer: Normalizer
) -> tuple[mx.array, LossMetrics]:
    """This micro-batch's share of the loss (a float32 scalar) and sums for the metrics.

    Raises ValueError when beta > 0 and there are no reference log-probabilities.
    """
    mask = inputs.mask_BT
    advantages_B1 = inputs.advantages_B[:, None]
    # Padding counts as ratio 1, so that nothing there can overflow.
    log_ratio_BT = (inputs.logprobs_BT - inputs.sampler_logprobs_BT) * mask
    level_log_ratio_BT = log_ratio_BT
    if ratio_level(options) == "sequence":
        mean_B1 = log_ratio_BT.sum(axis=1, keepdims=True) / mx.maximum(mask.sum(axis=1, keepdims=True), 1)
        level_log_ratio_BT = mx.broadcast_to(mean_B1, mask.shape)

    if inputs.stops is None:
        losses_BT, touched_BT = _policy_losses(inputs.logprobs_BT, level_log_ratio_BT, advantages_B1, options)
    else:
        losses_BT, touched_BT = _separate_losses(inputs, inputs.stops, level_log_ratio_BT, options)
    metrics: LossMetrics = {
        "tokens": mask.sum(),
        "ratio": (mx.exp(mx.stop_gradient(level_log_ratio_BT)) * mask).sum(),
        "clipped": (touched_BT * mask).sum(),
        "sampler_kl": -(mx.stop_gradient(log_ratio_BT)).sum(),
    }
    if options.beta > 0:
        if inputs.reference_logprobs_BT is None:
            raise ValueError("beta > 0 needs the reference's log-probabilities")
        difference_BT = (inputs.reference_logprobs_BT - inputs.logprobs_BT) * mask
        losses_BT = losses_BT + options.beta * _kl_losses(difference_BT, log_ratio_BT, options)
        frozen = mx.stop_gradient(difference_BT)
        metrics["kl"] = (mx.exp(frozen) - frozen - 1).sum()
    return _aggregate(losses_BT, mask, options, normalizer), metrics


def ratio_level(options: GrpoConfig) -> str:
    """``token`` or ``sequence``."""
    return options.ratio_level or ("sequence" if options.loss == "gspo" else "token")


def clip_bounds(options: GrpoConfig) -> tuple[float, float]:
    """(lowest, highest) ratio that PPO's clip lets through."""
    high = options.epsilon_high
    if high is None:
        high = DAPO_EPSILON_HIGH if options.loss == "dapo" else options.epsilon_low
    return 1 - options.epsilon_low, 1 + high


def _policy_losses(
    logprobs_BT: mx.array, log_ratio_BT: mx.array, advantages_B1: mx.array, options: GrpoConfig
) -> tuple[mx.array, mx.array]:
    """Token losses [B, T], and 1 where the correction changed one.

    A ratio may be infinite in float32. Where the correction takes it out, neither the loss nor the gradient
    may see it: 0 * inf is NaN. So `where` chooses, never a product, and it does so before an `exp` that a
    gradient goes through.
    """
    low, high = clip_bounds(options)
    cap = options.truncate_at
    frozen = mx.exp(mx.stop_gradient(log_ratio_BT))
    if options.correction == "clip":
        touched = ((frozen < low) & (advantages_B1 < 0)) | ((frozen > high) & (advantages_B1 > 0))
        flat = touched | (advantages_B1 == 0)
        live = mx.exp(mx.where(flat, 0.0, log_ratio_BT))
        return -mx.where(flat, mx.clip(frozen, low, high), live) * advantages_B1, touched.astype(mx.float32)
    if options.correction == "truncate":
        weight = mx.minimum(frozen, cap)
        return -weight * advantages_B1 * logprobs_BT, (frozen > cap).astype(mx.float32)
    if options.correction == "mask":
        inside = (frozen >= 1 / cap) & (frozen <= cap)
        return -mx.where(inside, frozen, 0.0) * advantages_B1 * logprobs_BT, 1 - inside.astype(mx.float32)
    return -mx.exp(log_ratio_BT) * advantages_B1, mx.zeros(log_ratio_BT.shape)


def _separate_losses(
    inputs: LossInputs, stops: StopInputs, log_ratio_BT: mx.array, options: GrpoConfig
) -> tuple[mx.array, mx.array]:
    """`_policy_losses` of deciding about stopping, and of everything else, added up.

    The ratio is that of whole tokens; its gradient goes through the one decision alone.
    """
    decided_BT = decision_logprobs(stops.logprobs_BT, stops.stopped_BT > 0) * inputs.mask_BT
    rest_BT = (inputs.logprobs_BT - decided_BT) * inputs.mask_BT
    frozen_BT = mx.stop_gradient(log_ratio_BT)
    losses_BT, touched_BT = mx.zeros(frozen_BT.shape), mx.zeros(frozen_BT.shape)
    for part_BT, advantages_B in ((decided_BT, stops.advantages_B), (rest_BT, inputs.advantages_B)):
        live_BT = part_BT - mx.stop_gradient(part_BT)
        if ratio_level(options) == "sequence":
            tokens_B1 = mx.maximum(inputs.mask_BT.sum(axis=1, keepdims=True), 1)
            live_BT = mx.broadcast_to(live_BT.sum(axis=1, keepdims=True) / tokens_B1, live_BT.shape)
        losses, touched = _policy_losses(part_BT, frozen_BT + live_BT, advantages_B[:, None], options)
        losses_BT, touched_BT = losses_BT + losses, mx.maximum(touched_BT, touched)
    return losses_BT, touched_BT


def decision_logprobs(stop_logprobs_BT: mx.array, stopped_BT: mx.array) -> mx.array:
    """log p [B, T] of having decided to stop, where ``stopped_BT``, or to go on, from log p of any stop token."""
    stop_BT = mx.minimum(stop_logprobs_BT, SUREST)
    return mx.where(stopped_BT, stop_BT, mx.log1p(-mx.exp(stop_BT)))


def _kl_losses(difference_BT: mx.array, log_ratio_BT: mx.array, options: GrpoConfig) -> mx.array:
    if options.kl == "k2":
        return 0.5 * mx.square(difference_BT)
    k3 = mx.exp(difference_BT) - difference_BT - 1
    return mx.exp(log_ratio_BT) * k3 if options.kl == "k3_weighted" else k3


def _aggregate(
    losses_BT: mx.array, mask_BT: mx.array, options: GrpoConfig, normalizer: Normalizer
) -> mx.array:
    sums_B = (losses_BT * mask_BT).sum(axis=1)
    if options.loss in ("grpo", "gspo"):
        return (sums_B / mx.maximum(mask_BT.sum(axis=1), 1)).sum() / normalizer.completions
    if options.loss == "dr_grpo":
        return sums_B.sum() / (normalizer.completions * normalizer.max_tokens)
    return sums_B.sum() / max(normalizer.tokens, 1)


def token_means(sums: dict[str, float]) -> dict[str, float]:
    """Metrics of a whole batch from the added-up sums of its micro-batches."""
    tokens = max(sums["tokens"], 1.0)
    means = {
        "ratio/mean": sums["ratio"] / tokens,
        "clip_fraction": sums["clipped"] / tokens,
        "ratio/sampler_kl": sums["sampler_kl"] / tokens,
    }
    if "kl" in sums:
        means["kl"] = sums["kl"] / tokens
    return means

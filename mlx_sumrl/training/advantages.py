"""Rewards -> advantages: each completion compared with the others of its group, in float64 numpy.

Invariant: the advantages of a group sum to 0, and a group whose completions all earned the same gives 0
everywhere; such groups are counted, since they teach nothing.

A reward may pay for some decisions only (`RewardConfig.credit`). Each token is two decisions: whether to stop, and if
not, with which token to go on. The advantage of one kind of decision is that of the rewards that pay for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlx_sumrl.config import Credit, GrpoConfig

FloatArray = npt.NDArray[np.float64]

SPREAD_FLOOR = 1e-8
"""A range (largest minus smallest of a group) up to this is rounding, not a difference."""


@dataclass(frozen=True)
class Advantages:
    """Advantages of a step's completions."""

    values_PG: FloatArray
    """Of every decision; where rewards pay for some only, of which token to go on with."""
    zero_spread: int
    """Groups in which every completion earned the same."""
    stop_PG: FloatArray | None = None
    """Of stopping or going on, where rewards pay for some decisions only."""


def group_advantages(
    contributions_PGR: FloatArray,
    weights_R: FloatArray,
    options: GrpoConfig,
    credits_R: Sequence[Credit] = (),
) -> Advantages:
    """Advantages [P, G] from weighted rewards [P, G, R] and the weights they were multiplied with.

    ``credits_R`` are the decisions that each pays for: all, where it is empty.

    ``sum``: A = (r - mean) / std of the summed reward within the group (Shao et al. 2024, eq. 3), without the
    division for ``dr_grpo`` or ``scale_advantages: none`` (Liu et al. 2025). ``each``: every reward is
    normalised by itself, then they are added up with their weights (GDPO, arXiv:2601.05242, eq. 4 and 5), so that
    a reward with a small spread is not drowned by one with a large spread. The standard deviation is the
    population's. NaN marks a reward that has nothing to say about a completion: it adds nothing, and ``each``
    compares the others among themselves. Raises ValueError for infinite rewards.
    """
    if np.isinf(contributions_PGR).any():
        raise ValueError("rewards must be finite")
    # A reward without weight pays for no decision; without p(stop) the head has half the work.
    if all(credit == "all" or not weights_R[r] for r, credit in enumerate(credits_R)):
        values_PG = _advantages(contributions_PGR, weights_R, options)
        return Advantages(values_PG, zero_spread=_zero_groups(values_PG))

    def paid_by(*credits: Credit) -> FloatArray:
        chosen = [credit in credits for credit in credits_R]
        return _advantages(contributions_PGR[..., chosen], weights_R[chosen], options)

    values_PG, stop_PG = paid_by("all", "content"), paid_by("all", "stop")
    return Advantages(values_PG, _zero_groups(np.abs(values_PG) + np.abs(stop_PG)), stop_PG)


def _zero_groups(values_PG: FloatArray) -> int:
    return int((values_PG == 0).all(axis=-1).sum())


def _advantages(contributions_PGR: FloatArray, weights_R: FloatArray, options: GrpoConfig) -> FloatArray:
    scale = options.scale_advantages == "group" and options.loss != "dr_grpo"
    if options.normalize_rewards == "sum":
        return _normalized(np.nansum(contributions_PGR, axis=-1), scale)
    # Dividing by the spread takes a weight's size out of a contribution again; it is put back here.
    sizes_R = np.abs(weights_R) if scale else np.ones_like(weights_R)
    values_PG = np.zeros(contributions_PGR.shape[:-1])
    for r, size in enumerate(sizes_R):
        values_PG = values_PG + size * _normalized(contributions_PGR[..., r], scale)
    # Rewards may cancel each other; what is left of them then is rounding too.
    return np.where(_flat(values_PG), 0.0, values_PG)


def _normalized(rewards_PG: FloatArray, scale: bool) -> FloatArray:
    present = ~np.isnan(rewards_PG)
    count = np.maximum(present.sum(axis=-1, keepdims=True), 1)
    mean = np.where(present, rewards_PG, 0.0).sum(axis=-1, keepdims=True) / count
    centred = np.where(present, rewards_PG - mean, 0.0)
    # Once more: what rounding left of the mean would be blown up by a small spread.
    centred = np.where(present, centred - centred.sum(axis=-1, keepdims=True) / count, 0.0)
    flat = _flat(rewards_PG)
    if scale:
        spread = np.sqrt(np.square(centred).sum(axis=-1, keepdims=True) / count)
        centred = centred / np.where(flat, 1.0, spread)
    return np.where(flat, 0.0, centred)


def _flat(values_PG: FloatArray) -> npt.NDArray[np.bool_]:
    """[P, 1], whether what is there of a group is all the same: by its range, free of a mean's rounding."""
    missing = np.isnan(values_PG)
    highest = np.where(missing, -np.inf, values_PG).max(axis=-1, keepdims=True)
    lowest = np.where(missing, np.inf, values_PG).min(axis=-1, keepdims=True)
    return np.asarray(highest - lowest <= SPREAD_FLOOR)

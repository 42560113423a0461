"""How well the length asked for was met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from mlx_sumrl.config import LengthConfig
from mlx_sumrl.rollouts.types import FinishReason

QUANTILES = (5, 25, 50, 75, 95)
"""Percent, of the errors' distribution."""


@dataclass(frozen=True, slots=True)
class LengthSummary:
    """Lengths of N completions, in the unit that was asked for. Shares are in [0, 1]."""

    within: float
    """Share that stopped by itself with ``|n - target|`` no more than what is allowed."""
    exact: float
    """Share that stopped by itself with ``n == target``: `within` at tolerance 0."""
    mean: float
    spread: float
    """Population standard deviation: the completions at hand are all there are."""
    unfinished: float
    """Share cut at the token limit."""
    errors: dict[str, float]
    """``length_error`` (the mean of length minus target), ``length_error_abs`` (the mean of what lies between them) and
    quantiles of the former: ``length_error_p5``, ``_p25``, ``_p50``, ``_p75``, ``_p95``."""

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        finish_reasons: Sequence[FinishReason],
        asked: LengthConfig | Sequence[LengthConfig],
    ) -> Self:
        """Summarise N lengths and their finish reasons against what was asked of all, or of each.

        A completion cut at the limit counts with the length it was cut at in ``mean``, ``spread`` and ``errors``, but
        never as within or exact, not even when it was cut at the target on purpose (the length-matched
        baseline): where it would have ended is not known.

        Raises:
            ValueError: no lengths, or another number of finish reasons or of what was asked.
        """
        if len(lengths) != len(finish_reasons) or not lengths:
            raise ValueError(f"got {len(lengths)} lengths and {len(finish_reasons)} finish reasons")
        lengths_N = np.asarray(lengths, dtype=np.float64)
        stopped_N = np.asarray([reason == "stop" for reason in finish_reasons])
        each = [asked] * len(lengths) if isinstance(asked, LengthConfig) else asked
        if len(each) != len(lengths):
            raise ValueError(f"got {len(lengths)} lengths and {len(each)} that were asked for")
        error_N = lengths_N - np.asarray([one.target for one in each])
        allowed_N = np.asarray([one.allowed for one in each])
        off_by_N = np.abs(error_N)
        return cls(
            within=float(np.mean(stopped_N & (off_by_N <= allowed_N))),
            exact=float(np.mean(stopped_N & (off_by_N == 0))),
            mean=float(lengths_N.mean()),
            spread=float(lengths_N.std()),
            unfinished=float(np.mean(~stopped_N)),
            errors={
                "length_error": float(error_N.mean()),
                "length_error_abs": float(off_by_N.mean()),
                **{
                    f"length_error_p{percent}": float(value)
                    for percent, value in zip(QUANTILES, np.percentile(error_N, QUANTILES), strict=True)
                },
            },
        )

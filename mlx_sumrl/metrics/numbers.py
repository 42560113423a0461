"""How far numbers are from those that were expected, and from each other. Never imports mlx."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True, slots=True)
class NumberScore:
    """N numbers against N expected ones, in the unit of the numbers. What needs a number is over the rows that have
    one, and None where there is none."""

    expected: int
    """Rows whose reference is a number."""
    answered: float
    """Share of them whose answer is one too."""
    mae: float | None
    """Mean absolute error."""
    rmse: float | None
    """Root of the mean squared error."""
    median_error: float | None
    """Median absolute error."""
    bias: float | None
    """Mean of said - expected."""
    r2: float | None
    """1 - sum of squared errors / sum of squared deviations of the expected numbers from their mean: 1 is perfect, 0 as
    good as always saying that mean, and below 0 is worse."""
    r2_missing: str | None
    """Why there is no R²."""

    @classmethod
    def of(cls, said: Sequence[float | None], expected: Sequence[float | None]) -> Self:
        """Score N answers; None is no number. Rows that expect none are left out.

        Raises:
            ValueError: another number of answers than of references.
        """
        pairs = [(one, wanted) for one, wanted in zip(said, expected, strict=True) if wanted is not None]
        both = [(one, wanted) for one, wanted in pairs if one is not None]
        answered = len(both) / len(pairs) if pairs else 0.0
        if not both:
            return cls(len(pairs), answered, None, None, None, None, None, "no row has a number")
        said_N, expected_N = np.array(both, dtype=np.float64).T
        errors_N = said_N - expected_N
        r2, r2_missing = _r2(errors_N, expected_N)
        return cls(
            expected=len(pairs),
            answered=answered,
            mae=float(np.mean(np.abs(errors_N))),
            rmse=float(np.sqrt(np.mean(errors_N**2))),
            median_error=float(np.median(np.abs(errors_N))),
            bias=float(np.mean(errors_N)),
            r2=r2,
            r2_missing=r2_missing,
        )


def coefficient_of_variation(values: Sequence[float]) -> float | None:
    """Sample standard deviation over the mean's size; None for fewer than two values, or a mean of 0 unless all are
    0, which do not vary."""
    if len(values) < 2:
        return None
    spread, mean = float(np.std(values, ddof=1)), abs(float(np.mean(values)))
    if spread == 0:
        return 0.0
    return spread / mean if mean else None


def _r2(errors_N: np.ndarray, expected_N: np.ndarray) -> tuple[float | None, str | None]:
    if np.ptp(expected_N) == 0:
        alone = "there is only one" if len(expected_N) == 1 else "they are all the same"
        return None, f"the expected numbers do not vary: {alone}"
    deviations_N = expected_N - expected_N.mean()
    return float(1 - np.sum(errors_N**2) / np.sum(deviations_N**2)), None

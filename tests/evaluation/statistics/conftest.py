"""Evaluations made of numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from mlx_sumrl.evaluation.results import Evaluation, Row


def _made(
    metrics: Mapping[str, Sequence[float | None] | np.ndarray],
    ids: Sequence[str] | None = None,
    lengths: Sequence[int] | None = None,
) -> Evaluation:
    """A row per number; named by their places, and 10 tokens long, where nothing else is said."""
    count = len(next(iter(metrics.values())))
    rows = tuple(
        Row(
            id=ids[n] if ids else f"row {n}",
            document="d",
            reference="r",
            text="t",
            length=lengths[n] if lengths else 10,
            finish_reason="stop",
            metrics={
                name: None if values[n] is None else float(values[n])  # type: ignore[arg-type]
                for name, values in metrics.items()
            },
        )
        for n in range(count)
    )
    return Evaluation(rows, {})


@pytest.fixture
def made() -> Callable[..., Evaluation]:
    return _made

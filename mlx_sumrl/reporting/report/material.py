"""What a report is made of: who is compared, what was measured, what the statistics say. Never imports mlx."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.evaluation.results import Evaluation, Row
from mlx_sumrl.evaluation.statistics.comparison import Comparison
from mlx_sumrl.reporting.curves import RunCurves
from mlx_sumrl.reporting.report.json_answers import JsonAnswers


@dataclass(frozen=True)
class Asked:
    """The length asked for."""

    target: int
    tolerance: int
    unit: str = "tokens"

    def __str__(self) -> str:
        return f"{self.target} ± {self.tolerance} {self.unit}"


@dataclass(frozen=True)
class Subject:
    """One thing that is compared: a policy, a method; one evaluation for each of its seeds."""

    name: str
    evaluations: tuple[Evaluation, ...]
    asked: Asked | None = None

    def rows(self) -> Iterator[Row]:
        """All rows of all seeds."""
        for evaluation in self.evaluations:
            yield from evaluation.rows

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Those that at least one row has a number of, ``length`` first."""
        found: dict[str, None] = {"length": None}
        for row in self.rows():
            found.update({name: None for name, value in row.metrics.items() if value is not None})
        return tuple(found)

    def by_row(self, metric: str) -> dict[str, float]:
        """Row id -> the metric, its mean where a row was answered several times; rows without it are left out."""
        found: dict[str, list[float]] = {}
        for row in self.rows():
            value = value_of(row, metric)
            if value is not None:
                found.setdefault(row.id, []).append(value)
        return {name: float(np.mean(values)) for name, values in found.items()}

    def values(self, metric: str) -> NDArray[np.float64]:
        """The metric of every row of every seed [N], without those that lack it."""
        values = [value_of(row, metric) for row in self.rows()]
        return np.array([value for value in values if value is not None], np.float64)

    def mean(self, metric: str) -> float | None:
        """Over rows and seeds; None where no row has it."""
        values = self.values(metric)
        return float(values.mean()) if len(values) else None

    def interval(self, metric: str) -> tuple[float, float, float] | None:
        """Mean and the ends of its 95 % interval by the normal approximation, rows being the unit (each the mean over
        the seeds); the mean alone thrice where there is one row."""
        values = np.array(list(self.by_row(metric).values()))
        if not len(values):
            return None
        mean = float(values.mean())
        half = 1.959964 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
        return mean, mean - half, mean + half


@dataclass(frozen=True)
class Sample:
    """One document with what each subject made of it."""

    id: str
    why: str
    """Why this row is shown."""
    document: str
    reference: str
    answers: Mapping[str, tuple[str, Mapping[str, float]]]
    """Subject -> its summary and the scores of it."""


@dataclass(frozen=True)
class Material:
    """All that a report shows."""

    title: str
    subjects: tuple[Subject, ...] = ()
    baseline: str | None = None
    comparisons: tuple[Comparison, ...] = ()
    curves: tuple[RunCurves, ...] = ()
    samples: tuple[Sample, ...] = ()
    json_answers: Mapping[str, JsonAnswers] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name of a run or file -> its options, as dotted names."""
    commands: Mapping[str, str] = field(default_factory=dict)
    """Name -> the command that made it."""
    warnings: tuple[str, ...] = ()

    @property
    def asked(self) -> Asked | None:
        """The length asked for, where all were asked the same."""
        asked = {subject.asked for subject in self.subjects if subject.asked is not None}
        return asked.pop() if len(asked) == 1 else None

    @property
    def unit(self) -> str:
        """Of the lengths."""
        return " or ".join(
            dict.fromkeys(one.unit for subject in self.subjects for one in subject.evaluations)
        )

    def metrics(self, *wanted: str) -> list[str]:
        """Those of ``wanted`` (or all) that every subject has."""
        if not self.subjects:
            return []
        have = [
            name for name in self.subjects[0].metrics if all(name in one.metrics for one in self.subjects)
        ]
        return [name for name in wanted if name in have] if wanted else have

    def place(self, name: str) -> int:
        """Where it stands among all, which is how it looks in every figure."""
        return [*(subject.name for subject in self.subjects), *self.json_answers].index(name)


def value_of(row: Row, metric: str) -> float | None:
    """A row's number; ``length`` is one, too."""
    value = float(row.length) if metric == "length" else row.metrics.get(metric)
    return value if value is not None and np.isfinite(value) else None


def pick(names: Sequence[str], *wanted: str) -> str | None:
    """The first of ``wanted`` that there is."""
    return next((name for name in wanted if name in names), None)

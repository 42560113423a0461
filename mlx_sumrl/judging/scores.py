"""Scores of summaries from the judge's readings: rounds to a row's mean and spread, rows to a summary.

Invariant: a number comes from well-formed replies only. A row is scored by a criterion when at least one round was,
and has a composite when all four criteria have a score. Never imports mlx.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from mlx_sumrl.config import Criterion, JudgingConfig
from mlx_sumrl.judging.criteria import CRITERIA, unit
from mlx_sumrl.judging.judge import Found
from mlx_sumrl.judging.questions import Asks, Inquiry
from mlx_sumrl.judging.replies import Verdict
from mlx_sumrl.judging.rows import JudgedText

GOOD_ABOVE = 0.5
"""A summary counts as good when each criterion is above this."""
METRIC = "judge_{}"
"""Name of a criterion, or of the composite, among a row's metrics."""


def inquiries(texts: Sequence[JudgedText], config: JudgingConfig) -> list[Inquiry]:
    """What is asked about the texts: all of them once before any of them twice."""
    asks: tuple[Asks, ...] = ("all",) if config.form == "json" else CRITERIA
    return [
        Inquiry(text.id, one, text.document, (text.summary,), number)
        for number in range(config.rounds)
        for text in texts
        if text.unusable is None
        for one in asks
    ]


@dataclass(slots=True)
class JudgedRow:
    """A summary's scores."""

    id: str
    rounds: dict[Criterion, list[Verdict]] = field(default_factory=lambda: {one: [] for one in CRITERIA})
    unscored: Counter[str] = field(default_factory=Counter)
    """Reason -> questions that gave no score."""

    def score(self, criterion: Criterion) -> float | None:
        """Mean over the rounds, in [0, 1]; None where none gave a score."""
        values = self._values(criterion)
        return fmean(values) if values else None

    def spread(self, criterion: Criterion) -> float | None:
        """Standard deviation over the rounds; None where fewer than two gave a score."""
        values = self._values(criterion)
        return stdev(values) if len(values) > 1 else None

    def mass(self, criterion: Criterion) -> float | None:
        """Probability that the judge gave to the digits, mean over the rounds where it is known."""
        known = [one.mass for one in self.rounds[criterion] if one.mass is not None]
        return fmean(known) if known else None

    @property
    def composite(self) -> float | None:
        """Sum of the four criteria, in [0, 4]; None where one is missing."""
        scores = [self.score(criterion) for criterion in CRITERIA]
        return None if None in scores else sum(one for one in scores if one is not None)

    @property
    def all_good(self) -> bool | None:
        """Whether each criterion is above `GOOD_ABOVE`; None where one is missing."""
        scores = [self.score(criterion) for criterion in CRITERIA]
        return None if None in scores else all(one > GOOD_ABOVE for one in scores if one is not None)

    def metrics(self) -> dict[str, float | None]:
        """``judge_faithfulness``, …, ``judge_composite``, and ``judge_all``, 1 where all four are above 0.5."""
        each = {METRIC.format(criterion): self.score(criterion) for criterion in CRITERIA}
        good = None if self.all_good is None else float(self.all_good)
        return {**each, METRIC.format("composite"): self.composite, METRIC.format("all"): good}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "id": self.id,
            "scores": {criterion: self.score(criterion) for criterion in CRITERIA},
            "composite": self.composite,
            "spread": {criterion: self.spread(criterion) for criterion in CRITERIA},
            "mass": {criterion: self.mass(criterion) for criterion in CRITERIA},
            "rounds": {criterion: self._values(criterion) for criterion in CRITERIA},
            "unscored": dict(self.unscored),
        }

    def _values(self, criterion: Criterion) -> list[float]:
        return [unit(one.value) for one in self.rounds[criterion]]


def judged_rows(texts: Sequence[JudgedText], found: Found, config: JudgingConfig) -> list[JudgedRow]:
    """One row for each text, in their order."""
    rows = []
    for text in texts:
        row = JudgedRow(text.id)
        if text.unusable is not None:
            row.unscored[text.unusable] += 1
        for inquiry in inquiries([text], config):
            for criterion, verdict in _verdicts(inquiry, found):
                row.rounds[criterion].append(verdict)
            if inquiry in found.unscored:
                row.unscored[found.unscored[inquiry]] += 1
        rows.append(row)
    return rows


def summary(rows: Sequence[JudgedRow]) -> dict[str, Any]:
    """Means over the rows that have a score.

    ``judge_…`` means, with ``judge_all`` the share of rows with all four above 0.5, of those that have all four;
    ``rows``, ``scored`` (rows with all four), ``n`` (rows by criterion), ``unscored`` (reason -> questions), ``spread``
    and ``mass`` (means by criterion), ``weighted`` (share of scores weighed by probability).
    """
    verdicts = [one for row in rows for rounds in row.rounds.values() for one in rounds]
    means = {name: _mean([row.metrics()[name] for row in rows]) for name in JudgedRow("").metrics()}
    return {
        "rows": len(rows),
        "scored": sum(row.all_good is not None for row in rows),
        **means,
        "n": {criterion: sum(row.score(criterion) is not None for row in rows) for criterion in CRITERIA},
        "spread": {criterion: _mean([row.spread(criterion) for row in rows]) for criterion in CRITERIA},
        "mass": {criterion: _mean([row.mass(criterion) for row in rows]) for criterion in CRITERIA},
        "weighted": fmean(one.mass is not None for one in verdicts) if verdicts else None,
        "unscored": dict(sum((row.unscored for row in rows), Counter())),
    }


def with_metrics(content: Mapping[str, Any], rows: Sequence[JudgedRow]) -> dict[str, Any]:
    """An evaluation's JSON with the judge's scores among the metrics of its rows and in its summary.

    Rows beyond those judged get none.
    """
    nothing = JudgedRow("").metrics()
    judged = [row.metrics() for row in rows]
    judged += [nothing] * (len(content["rows"]) - len(judged))
    found = summary(rows)
    return {
        **content,
        "summary": {**content["summary"], **{name: found[name] for name in nothing}},
        "rows": [
            {**row, "metrics": {**row["metrics"], **metrics}}
            for row, metrics in zip(content["rows"], judged, strict=True)
        ],
    }


def _verdicts(inquiry: Inquiry, found: Found) -> Iterator[tuple[Criterion, Verdict]]:
    reading = found.readings.get(inquiry)
    if isinstance(reading, Verdict):
        assert inquiry.asks != "all"
        assert inquiry.asks != "pair"
        yield inquiry.asks, reading
    elif isinstance(reading, dict):
        yield from reading.items()


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None

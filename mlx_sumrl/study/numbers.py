"""Evaluation files of a study -> the numbers of its tables: each file's, and over seeds. Never imports mlx."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev

Numbers = Mapping[str, float | None]

MEDIAN = "perplexity_median"
"""Over the rows: one text of pure noise moves a mean of perplexities as far as it likes."""


@dataclass(frozen=True, slots=True)
class Line:
    """What is put together in one line of a table: a baseline, or a method over its seeds."""

    name: str
    files: Mapping[str, Numbers]
    """Run or baseline -> its numbers; those that have none yet are left out."""

    def mean(self, metric: str) -> float | None:
        """Over the seeds that have it (`gap_notes` tells of the others); None where none has."""
        known = self._known(metric)
        return fmean(known) if known else None

    def spread(self, metric: str) -> float | None:
        """Standard deviation over the seeds (n - 1); None with fewer than two."""
        known = self._known(metric)
        return stdev(known) if len(known) > 1 else None

    def metrics(self) -> list[str]:
        """Every number that some seed has."""
        return list(dict.fromkeys(name for numbers in self.files.values() for name in numbers))

    def _known(self, metric: str) -> list[float]:
        found = (numbers.get(metric) for numbers in self.files.values())
        return [value for value in found if value is not None]


def numbers_of(file: Path) -> Numbers:
    """The summary of an evaluation, and the median of its rows' perplexities where they have any."""
    content = json.loads(file.read_bytes())
    found = dict(content["summary"])
    known = [
        row["metrics"]["perplexity"]
        for row in content["rows"]
        if row["metrics"].get("perplexity") is not None
    ]
    if known:
        found[MEDIAN] = median(known)
    return found


def line_of(name: str, members: Sequence[str], folder: Path) -> Line:
    """The line of what ``members`` left in ``folder``, by their files' names."""
    files = {member: folder / f"{member}.json" for member in members}
    return Line(name, {member: numbers_of(file) for member, file in files.items() if file.is_file()})

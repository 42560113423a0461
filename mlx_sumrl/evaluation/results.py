"""What an evaluation found: one row per completion, and their summary; as JSON and back. Never imports mlx.

Invariant: what an older version of this wrote is still read; what it did not know is then left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from mlx_sumrl.config import DEFAULT_LENGTH_UNIT, LengthConfig, LengthUnit
from mlx_sumrl.rollouts.types import FinishReason


@dataclass(frozen=True, slots=True)
class Asked:
    """The length that was asked for."""

    target: int
    tolerance: int
    unit: LengthUnit

    @classmethod
    def of(cls, length: LengthConfig) -> Self | None:
        """What the options ask for; None where they ask each row for another."""
        return None if length.targets else cls(length.target, length.allowed, length.unit)


@dataclass(frozen=True, slots=True)
class Sample:
    """A further completion of a row's prompt."""

    text: str
    length: int
    finish_reason: FinishReason
    metrics: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Row:
    """One completion beside what it should have said. The prompt is left out: the document says the same."""

    id: str
    document: str
    reference: str
    """The first, where there are several."""
    text: str
    length: int
    """In the unit that was asked for; tokens are counted without the stop token."""
    finish_reason: FinishReason
    metrics: dict[str, float | None]
    """By the names of `mlx_sumrl.metrics.catalogue`: ``within`` (0 or 1), ``exact`` (0 or 1), ``length_error`` (length
    minus target), the ROUGE metrics, ``meteor``, ``bleu``, ... None where there is no such number: no WordNet, nothing
    said, nothing to be found."""
    completion: str | None = None
    """All that was written, where ``text`` is only the answer in it."""
    references: tuple[str, ...] = ()
    """All of them, where there are several."""
    samples: tuple[Sample, ...] = ()
    """Completions after the first, where several were drawn."""
    target: int | None = None
    """The length that this row was asked for, where rows were asked for different ones."""
    consistency: dict[str, float | None] = field(default_factory=dict)
    """Metric, or ``length`` -> its coefficient of variation over all completions of the row; see `consistency_of`."""


_LEFT_OUT_WHERE_EMPTY = ("completion", "references", "samples", "target", "consistency")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scored completions of held-out examples."""

    rows: tuple[Row, ...]
    summary: dict[str, float | None]
    """``rows`` (how many), ``within``, ``exact``, ``length_mean``, ``length_std``, ``unfinished``; ``length_error``,
    which is the mean, ``length_error_abs`` and ``length_error_p5``, ``_p25``, ``_p50``, ``_p75``, ``_p95``; the mean
    over the rows that have it of every metric of a row, None where none has; ``distinct_1_all`` and ``distinct_2_all``
    over all texts together; ``consistency_*`` where several completions were drawn. Shares and scores are in [0, 1],
    lengths in `unit`."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Metric that no row has -> why, and how to get it."""
    unit: LengthUnit = DEFAULT_LENGTH_UNIT
    """Of all lengths in it."""
    asked: Asked | None = None
    """None in files of older versions, and where no length was asked for or another of each row."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Model, data, decoding, seed and the command: how to do it again. Plain JSON values."""
    prompts_sha256: str | None = None
    """Of what was asked, see `prompts_sha256`: two evaluations with the same were asked the same."""

    @property
    def meteor_missing(self) -> str | None:
        """Why there is no METEOR and how to get it; None when there is."""
        return self.missing.get("meteor")

    def to_json(self) -> dict[str, Any]:
        """Summary and rows as plain JSON values."""
        return {
            "summary": dict(self.summary),
            "missing": dict(self.missing),
            "unit": self.unit,
            "asked": None if self.asked is None else asdict(self.asked),
            "options": dict(self.options),
            "prompts_sha256": self.prompts_sha256,
            "rows": [
                {
                    name: value
                    for name, value in asdict(row).items()
                    if name not in _LEFT_OUT_WHERE_EMPTY or value
                }
                for row in self.rows
            ],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """What `to_json` wrote, now or in an older version."""
        asked = content.get("asked")
        missing = dict(content.get("missing") or {})
        if content.get("meteor_missing"):  # as it was written before other metrics could be missing
            missing["meteor"] = content["meteor_missing"]
        return cls(
            rows=tuple(map(_row, content["rows"])),
            summary=dict(content["summary"]),
            missing=missing,
            unit=content.get("unit", DEFAULT_LENGTH_UNIT),  # before there were others it was not written
            asked=None if asked is None else Asked(**asked),
            options=content.get("options") or {},
            prompts_sha256=content.get("prompts_sha256"),
        )


def _row(content: Mapping[str, Any]) -> Row:
    given = dict(content)
    given["references"] = tuple(given.get("references", ()))
    given["samples"] = tuple(Sample(**one) for one in given.get("samples", ()))
    return Row(**given)

"""What an evaluation found: one row per completion, and their summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Self

from mlx_sumrl.config import DEFAULT_LENGTH_UNIT, LengthConfig, LengthUnit
from mlx_sumrl.data.languages import keeps_language
from mlx_sumrl.evaluation.length import LengthSummary
from mlx_sumrl.metrics.meteor import meteor, missing_wordnet
from mlx_sumrl.metrics.rouge import ROUGE_NAMES, rouge
from mlx_sumrl.rewards.length import is_within, length_in
from mlx_sumrl.rewards.repetition import repetition
from mlx_sumrl.rollouts.types import FinishReason, Group

REPETITION_NGRAM = 4
"""Tokens of the n-grams whose repeats are counted; references hardly repeat any."""


@dataclass(frozen=True, slots=True)
class Row:
    """One completion beside what it should have said. The prompt is left out: the document says the same."""

    id: str
    document: str
    reference: str
    text: str
    length: int
    """In the unit that was asked for; tokens are counted without the stop token."""
    finish_reason: FinishReason
    metrics: dict[str, float | None]
    """``within`` (0 or 1), ``exact`` (0 or 1), the ROUGE metrics, ``meteor``, ``repetition`` and ``language_kept`` (0
    or 1) of this row."""
    completion: str | None = None
    """All that was written, where ``text`` is only the answer in it."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scored completions of held-out examples."""

    rows: tuple[Row, ...]
    summary: dict[str, float | None]
    """``rows`` (how many), ``within``, ``exact``, ``length_mean``, ``length_std``, ``unfinished``,
    ``rouge1``, ``rouge2``, ``rougeL``, each of these three with ``_recall``, ``meteor``, ``repetition`` and
    ``language_kept``. Shares and scores are means over the rows in [0, 1], lengths are in `unit`; ``meteor`` is None
    without WordNet."""
    meteor_missing: str | None = None
    """Why there is no METEOR and how to get it; None when there is."""
    unit: LengthUnit = DEFAULT_LENGTH_UNIT
    """Of all lengths in it."""

    def to_json(self) -> dict[str, Any]:
        """Summary and rows as plain JSON values."""
        return {
            "summary": dict(self.summary),
            "meteor_missing": self.meteor_missing,
            "unit": self.unit,
            "rows": [
                {
                    name: value
                    for name, value in asdict(row).items()
                    if name != "completion" or value is not None
                }
                for row in self.rows
            ],
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """What `to_json` wrote."""
        rows = tuple(Row(**row) for row in content["rows"])
        unit = content.get("unit", DEFAULT_LENGTH_UNIT)  # what was written before there were others has none
        return cls(rows, content["summary"], content["meteor_missing"], unit)


def score(groups: Sequence[Group], length: LengthConfig) -> Evaluation:
    """Score every completion against its example's reference and the length asked for.

    Usually one completion per group; with more, each is a row of its own and weighs the same in the summary.

    Raises:
        ValueError: there is no completion to score.
    """
    meteor_missing = missing_wordnet()
    rows = tuple(
        Row(
            id=group.example.id,
            document=group.example.document,
            reference=group.example.reference,
            text=completion.text,
            length=length_in(completion, length.unit),
            finish_reason=completion.finish_reason,
            metrics={
                "within": float(is_within(completion, length)),
                "exact": float(is_within(completion, length.model_copy(update={"tolerance": 0}))),
                **rouge(completion.text, group.example.reference),
                "meteor": None if meteor_missing else meteor(completion.text, group.example.reference),
                "repetition": repetition(completion, REPETITION_NGRAM),
                "language_kept": float(keeps_language(completion.text, group.example.document)),
            },
        )
        for group in groups
        for completion in group.completions
    )
    if not rows:
        raise ValueError("there is no completion to score")
    return Evaluation(rows, _summarise(rows, length), meteor_missing, length.unit)


def _summarise(rows: Sequence[Row], length: LengthConfig) -> dict[str, float | None]:
    lengths = LengthSummary.of([row.length for row in rows], [row.finish_reason for row in rows], length)
    return {
        "rows": len(rows),
        "within": lengths.within,
        "exact": lengths.exact,
        "length_mean": lengths.mean,
        "length_std": lengths.spread,
        "unfinished": lengths.unfinished,
        **{name: _mean(rows, name) for name in (*ROUGE_NAMES, "meteor", "repetition", "language_kept")},
    }


def _mean(rows: Sequence[Row], name: str) -> float | None:
    values = [value for row in rows if (value := row.metrics[name]) is not None]
    return fmean(values) if values else None

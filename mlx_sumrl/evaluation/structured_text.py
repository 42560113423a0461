"""Texts in structured answers: how like those of the references they are. Never imports mlx.

A reference that is empty has nothing to be like: its rows are counted, and are in no mean but `words`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from mlx_sumrl.data.text_length import words
from mlx_sumrl.evaluation.structured_fields import FieldRows
from mlx_sumrl.metrics.bleu import bleu
from mlx_sumrl.metrics.meteor import meteor, missing_wordnet
from mlx_sumrl.metrics.rouge import rouge


@dataclass(frozen=True, slots=True)
class TextScore:
    """Of one field of text in N rows."""

    rows: int
    """Rows whose reference has a text; the metrics are means over them, 0 where the answer has none."""
    empty_references: float
    """Share of all rows whose reference is empty or left out."""
    both_empty: float
    """Share of all rows where both are."""
    words: float
    """Mean words of the answers, over all rows."""
    reference_words: float
    """The same of the references."""
    metrics: dict[str, float | None]
    """ROUGE (F1, and recall with a suffix), ``meteor`` and ``bleu``, in [0, 1]; None without any row, and ``meteor``
    without WordNet."""
    meteor_missing: str | None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def text_rows(field: FieldRows) -> list[dict[str, float | None]]:
    """The metrics of each row of a field [N]; none where its reference is empty."""
    without_meteor = missing_wordnet() is not None
    return [
        _metrics(said, expected, without_meteor) if expected.strip() else {}
        for said, expected in zip(_texts(field.said), _texts(field.expected), strict=True)
    ]


def text_score(field: FieldRows, rows: Sequence[dict[str, float | None]]) -> TextScore:
    """Of a field and what `text_rows` found."""
    said, expected = _texts(field.said), _texts(field.expected)
    scored = [row for row in rows if row]
    names = dict.fromkeys(name for row in scored for name in row)
    return TextScore(
        rows=len(scored),
        empty_references=fmean(not text.strip() for text in expected),
        both_empty=fmean(
            not one.strip() and not other.strip() for one, other in zip(said, expected, strict=True)
        ),
        words=fmean(map(words, said)),
        reference_words=fmean(map(words, expected)),
        metrics={name: _mean([row[name] for row in scored]) for name in names},
        meteor_missing=missing_wordnet(),
    )


def _texts(values: Sequence[Any]) -> list[str]:
    return [value if isinstance(value, str) else "" for value in values]


def _metrics(text: str, reference: str, without_meteor: bool) -> dict[str, float | None]:
    if not text.strip():  # nothing said: sacrebleu and nltk need not be asked
        names = (*rouge("", reference), "meteor", "bleu")
        return {name: None if name == "meteor" and without_meteor else 0.0 for name in names}
    return {
        **rouge(text, reference),
        "meteor": None if without_meteor else meteor(text, reference),
        "bleu": bleu(text, reference),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if there else None

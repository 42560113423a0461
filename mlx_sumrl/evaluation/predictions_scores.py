"""Predictions out of files -> their scores, beside those of answers that never look at a document.

Never imports mlx.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlx_sumrl.config.matching import MatchingConfig
from mlx_sumrl.evaluation.predictions import Predictions
from mlx_sumrl.evaluation.structured_baselines import SAYS
from mlx_sumrl.evaluation.structured_consistency import Consistency, consistency
from mlx_sumrl.evaluation.structured_scores import (
    StructuredScores,
    numeric_errors,
    score_answers,
    score_baselines,
)


@dataclass(frozen=True, slots=True)
class PredictionsEvaluation:
    """Scored predictions."""

    predictions: Predictions
    scores: StructuredScores
    baselines: dict[str, StructuredScores]
    consistency: Consistency | None
    """Where several answers to one id are meant."""

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON values.

        ``consistency`` has the coefficient of variation of each field of numbers, ``samples`` all that is known of
        several answers to one id; both are left out where there are none.
        """
        rows = [
            {
                "id": row.id,
                **({} if row.sample is None else {"sample": row.sample}),
                "valid": row.valid,
                "reference": row.reference,
                "answer": row.answer,
                "metrics": metrics,
            }
            for row, metrics in zip(self.predictions.rows, self.scores.metrics, strict=True)
        ]
        content = {
            **self.scores.to_json(),
            "baselines": {name: scores.to_json() for name, scores in self.baselines.items()},
            "baselines_say": SAYS,
            "numeric_errors": numeric_errors([row.id for row in self.predictions.rows], self.scores),
            "account": self.predictions.account.to_json(),
        }
        if self.consistency is not None:
            fields = self.consistency.fields
            varied = {name: one.variation for name, one in fields.items() if one.variation is not None}
            content |= {"consistency": varied, "samples": self.consistency.to_json()}
        return {**content, "rows": rows}


def score_predictions(predictions: Predictions, matching: MatchingConfig) -> PredictionsEvaluation:
    """Score every row; several answers to one id weigh as so many rows.

    Raises:
        UserError: `matching` names a field to match softly that is no list.
    """
    rows = predictions.rows
    references = [row.reference for row in rows]
    answers = [row.answer for row in rows]
    valid = [row.valid for row in rows]
    return PredictionsEvaluation(
        predictions,
        score_answers(references, answers, matching, predictions.fields, valid),
        score_baselines(references, matching, predictions.fields),
        consistency([row.id for row in rows], answers, predictions.kinds, matching)
        if predictions.several
        else None,
    )

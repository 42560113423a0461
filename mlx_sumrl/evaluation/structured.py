"""Have a policy answer in JSON, and count how often it is JSON and how often it is right."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from mlx_sumrl.config.matching import MatchingConfig
from mlx_sumrl.data.answer_schema import AnswerSchema, read_json
from mlx_sumrl.data.example import Example
from mlx_sumrl.evaluation.evaluate import answered
from mlx_sumrl.evaluation.structured_answer import StructuredAnswer, read_answer
from mlx_sumrl.evaluation.structured_baselines import SAYS
from mlx_sumrl.evaluation.structured_fields import FieldScore
from mlx_sumrl.evaluation.structured_scores import (
    StructuredScores,
    numeric_errors,
    score_answers,
    score_baselines,
)
from mlx_sumrl.rollouts.types import Group, Sampler, Sampling

COUNTED = ("valid", "repaired", "around", "several", "absent", "unfinished")
"""What is counted of answers; see `StructuredAnswer`."""


@dataclass(frozen=True, slots=True)
class StructuredRow:
    """One answer beside what it should have been."""

    id: str
    reference: Any
    text: str
    length: int
    """Generated tokens without the stop token."""
    answer: StructuredAnswer


@dataclass(frozen=True, slots=True)
class StructuredEvaluation:
    """Structured answers to held-out examples."""

    rows: tuple[StructuredRow, ...]
    summary: dict[str, float]
    """That of `StructuredScores`, where ``valid`` is as it was written; the shares `COUNTED`, in [0, 1];
    ``length_mean`` in tokens; ``tokens_per_second`` where it was measured. Of fields, repaired values are included and
    unusable answers have every field missing."""
    scores: StructuredScores
    baselines: dict[str, StructuredScores]
    """What answers that never look at their document would get."""
    matching: MatchingConfig
    """When an item was right."""

    @property
    def fields(self) -> dict[str, FieldScore]:
        """Field -> its score, in the schema's order."""
        return self.scores.fields

    def to_json(self) -> dict[str, Any]:
        """Summary, fields, rows, errors of numbers and baselines as plain JSON values."""
        rows = [
            {**asdict(row), "metrics": metrics}
            for row, metrics in zip(self.rows, self.scores.metrics, strict=True)
        ]
        return {
            **self.scores.to_json(),
            "summary": dict(self.summary),
            "baselines": {name: scores.to_json() for name, scores in self.baselines.items()},
            "baselines_say": SAYS,
            "numeric_errors": numeric_errors([row.id for row in self.rows], self.scores),
            "matching": self.matching.model_dump(mode="json"),
            "rows": rows,
        }


def evaluate_structured(
    sampler: Sampler,
    examples: Sequence[Example],
    schema: AnswerSchema,
    sampling: Sampling,
    batch_size: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    matching: MatchingConfig | None = None,
) -> StructuredEvaluation:
    """One answer per example, see `mlx_sumrl.evaluation.evaluate.answered`; references are JSON.

    Raises:
        ValueError: no examples, a batch size below 1, or a reference that is no JSON.
        UserError: ``matching`` names a field to match softly that is no list.
    """
    started = time.perf_counter()
    groups = answered(sampler, examples, sampling, batch_size, seed, progress)
    seconds = time.perf_counter() - started
    scored = score_structured(groups, schema, matching)
    tokens = sum(len(completion.token_ids) for group in groups for completion in group.completions)
    return replace(scored, summary=scored.summary | {"tokens_per_second": tokens / seconds})


def score_structured(
    groups: Sequence[Group], schema: AnswerSchema, matching: MatchingConfig | None = None
) -> StructuredEvaluation:
    """Hold every completion against the schema and its example's reference.

    Raises:
        ValueError: there is no completion, or a reference is no JSON.
        UserError: ``matching`` names a field to match softly that is no list.
    """
    rows = tuple(
        StructuredRow(
            id=group.example.id,
            reference=read_json(group.example.reference),
            text=completion.text,
            length=completion.length,
            answer=read_answer(completion.text, completion.finish_reason, schema),
        )
        for group in groups
        for completion in group.completions
    )
    if not rows:
        raise ValueError("there is no completion to score")
    matching = matching or MatchingConfig()
    references = [row.reference for row in rows]
    scores = score_answers(
        references,
        [row.answer.value for row in rows],
        matching,
        schema.fields,
        valid=[row.answer.valid for row in rows],
    )
    summary = {
        **scores.summary,
        **{name: fmean(getattr(row.answer, name) for row in rows) for name in COUNTED},
        "length_mean": fmean(row.length for row in rows),
    }
    return StructuredEvaluation(
        rows, summary, scores, score_baselines(references, matching, schema.fields), matching
    )

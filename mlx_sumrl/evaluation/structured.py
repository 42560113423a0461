"""Have a policy answer in JSON, and count how often it is JSON and how often it is right."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from mlx_sumrl.data.answer_schema import AnswerSchema, read_json
from mlx_sumrl.data.example import Example
from mlx_sumrl.evaluation.evaluate import answered
from mlx_sumrl.evaluation.structured_answer import StructuredAnswer, read_answer
from mlx_sumrl.evaluation.structured_fields import FieldScore, field_scores, macro_f1, micro_f1
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
    """``rows`` (how many); the shares `COUNTED`, in [0, 1]; ``field_f1_micro`` and ``field_f1_macro``, repaired values
    included and unusable answers with every field missing; ``length_mean`` in tokens; ``tokens_per_second`` where it
    was measured."""
    fields: dict[str, FieldScore]
    """Field -> its score, in the schema's order."""

    def to_json(self) -> dict[str, Any]:
        """Summary, fields and rows as plain JSON values."""
        fields = {
            name: {**asdict(score), "precision": score.precision, "recall": score.recall, "f1": score.f1}
            for name, score in self.fields.items()
        }
        return {
            "summary": dict(self.summary),
            "fields": fields,
            "rows": [asdict(row) for row in self.rows],
        }


def evaluate_structured(
    sampler: Sampler,
    examples: Sequence[Example],
    schema: AnswerSchema,
    sampling: Sampling,
    batch_size: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> StructuredEvaluation:
    """One answer per example, see `mlx_sumrl.evaluation.evaluate.answered`; references are JSON.

    Raises:
        ValueError: no examples, a batch size below 1, or a reference that is no JSON.
    """
    started = time.perf_counter()
    groups = answered(sampler, examples, sampling, batch_size, seed, progress)
    seconds = time.perf_counter() - started
    scored = score_structured(groups, schema)
    tokens = sum(len(completion.token_ids) for group in groups for completion in group.completions)
    return StructuredEvaluation(
        scored.rows, scored.summary | {"tokens_per_second": tokens / seconds}, scored.fields
    )


def score_structured(groups: Sequence[Group], schema: AnswerSchema) -> StructuredEvaluation:
    """Hold every completion against the schema and its example's reference.

    Raises:
        ValueError: there is no completion, or a reference is no JSON.
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
    fields = field_scores([row.reference for row in rows], [row.answer.value for row in rows], schema.fields)
    summary = {
        "rows": float(len(rows)),
        **{name: fmean(getattr(row.answer, name) for row in rows) for name in COUNTED},
        "field_f1_micro": micro_f1(fields.values()),
        "field_f1_macro": macro_f1(fields.values()),
        "length_mean": fmean(row.length for row in rows),
    }
    return StructuredEvaluation(rows, summary, fields)

"""What became of one structured answer: valid as it is, after a repair, or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import json_repair

from mlx_sumrl.data.answer_schema import AnswerSchema, NotJsonError, read_json
from mlx_sumrl.rollouts.json_values import value_spans
from mlx_sumrl.rollouts.types import FinishReason


@dataclass(frozen=True, slots=True)
class StructuredAnswer:
    """One answer held against a schema. At most one of `valid` and `repaired` is set."""

    valid: bool
    """The whole text, white space around it aside, is JSON that meets the schema."""
    repaired: bool
    """It is not, but it has exactly one object or list, which meets the schema once the text around it (code fences
    too) is taken off and json_repair has mended it: trailing and missing commas, quotes, brackets left open inside,
    comments. What has no end is not made one."""
    around: bool
    """There is text before, between or after its values."""
    several: bool
    """More than one object or list has begun."""
    absent: bool
    """None has begun."""
    unfinished: bool
    """It was cut at the token limit."""
    value: Any = None
    """What was read, where it is valid or repaired."""
    problem: str | None = None
    """Why it is not valid."""

    @property
    def usable(self) -> bool:
        """Whether there is a value that meets the schema."""
        return self.valid or self.repaired


def read_answer(text: str, finish_reason: FinishReason, schema: AnswerSchema) -> StructuredAnswer:
    """Hold a text against a schema. Of a schema of plain values only `valid` and `unfinished` are looked at."""
    written = text.encode()
    spans, begun = value_spans(written, schema.opening)
    edges = [0, *(edge for span in spans for edge in span), len(written) if begun is None else begun]
    outside = [written[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]
    values = len(spans) + (begun is not None)
    value, problem = _read(text, schema)
    valid = problem is None
    repaired = False
    if not valid and values == 1 and spans:
        [(start, end)] = spans
        value, repaired = _mended(written[start:end].decode(), schema)
    return StructuredAnswer(
        valid=valid,
        repaired=repaired,
        around=values > 0 and any(piece.strip() for piece in outside),
        several=values > 1,
        absent=bool(schema.opening) and values == 0,
        unfinished=finish_reason == "length",
        value=value if valid or repaired else None,
        problem=problem,
    )


def _read(text: str, schema: AnswerSchema) -> tuple[Any, str | None]:
    """The value that the text is, and what is wrong with it."""
    try:
        value = read_json(text)
    except NotJsonError as error:
        return None, f"no JSON ({error})"
    problem = schema.problem(value)
    return value, None if problem is None else str(problem)


def _mended(text: str, schema: AnswerSchema) -> tuple[Any, bool]:
    """The object or list that a text was meant to be, and whether it meets the schema."""
    try:
        value = read_json(text)
    except NotJsonError:
        try:
            value = json_repair.loads(text)
            json.dumps(value, allow_nan=False)
        except (ValueError, RecursionError):
            return None, False
    return value, schema.problem(value) is None

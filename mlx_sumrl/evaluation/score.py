"""Completions -> an evaluation: every row's metrics, and their summary. Never imports mlx."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from mlx_sumrl.config import LengthConfig
from mlx_sumrl.evaluation.consistency import consistency_of, is_varied
from mlx_sumrl.evaluation.length import LengthSummary
from mlx_sumrl.evaluation.results import Asked, Evaluation, Row, Sample
from mlx_sumrl.evaluation.row_metrics import (
    DOCUMENT_METRICS,
    REFERENCE_METRICS,
    Scoring,
    bertscores,
    document_metrics,
    reference_metrics,
)
from mlx_sumrl.metrics.distinct import distinct
from mlx_sumrl.metrics.meteor import missing_wordnet
from mlx_sumrl.rewards.length import is_within, length_in
from mlx_sumrl.rewards.repetition import repetition
from mlx_sumrl.rollouts.types import Completion, Group

REPETITION_NGRAM = 4
"""Tokens of the n-grams whose repeats are counted; references hardly repeat any."""
_COUNTED_APART = ("within", "exact", "length_error")
"""Metrics of a row that `LengthSummary` sums up."""
_DEFAULT = Scoring()


def score(groups: Sequence[Group], length: LengthConfig, scoring: Scoring = _DEFAULT) -> Evaluation:
    """Score every completion against its example's references, its document and the length asked for.

    Usually one completion per group; with more, each is a row of its own and weighs the same in the summary. See
    `score_samples` for several samples of the same prompt.

    Raises:
        ValueError: there is no completion to score.
    """
    missing = missing_wordnet()
    rows = [
        _row(group, completion, length, scoring, wordnet=missing is None)
        for group in groups
        for completion in group.completions
    ]
    if not rows:
        raise ValueError("there is no completion to score")
    near = bertscores(
        [row.text for row in rows], [row.references or (row.reference,) for row in rows], scoring
    )
    rows = [
        replace(row, metrics=row.metrics | found) if found else row
        for row, found in zip(rows, near, strict=True)
    ]
    return Evaluation(
        tuple(rows),
        _summary(rows, length),
        {} if missing is None else {"meteor": missing},
        length.unit,
        Asked.of(length),
    )


def score_samples(groups: Sequence[Group], length: LengthConfig, scoring: Scoring = _DEFAULT) -> Evaluation:
    """As `score`, one row per group: its first completion, with the others and how much they vary beside it.

    The summary is that of the first completions, and says under ``consistency_*`` the mean over the rows of each
    metric's coefficient of variation.

    Raises:
        ValueError: there is no completion to score, or the groups are of different sizes.
    """
    sizes = {len(group.completions) for group in groups}
    if len(sizes) > 1:
        raise ValueError(f"groups of {min(sizes)} to {max(sizes)} completions: draw as many for each")
    everything = score(groups, length, scoring)
    count = sizes.pop()
    if count == 1:
        return everything
    rows = []
    for start in range(0, len(everything.rows), count):
        first, *others = everything.rows[start : start + count]
        samples = tuple(Sample(row.text, row.length, row.finish_reason, row.metrics) for row in others)
        varied = {"length": [float(row.length) for row in (first, *others)]} | {
            name: [row.metrics[name] for row in (first, *others)] for name in first.metrics if is_varied(name)
        }
        consistency = {name: consistency_of(values) for name, values in varied.items()}
        rows.append(replace(first, samples=samples, consistency=consistency))
    varies = {
        f"consistency_{name}": _mean([row.consistency[name] for row in rows]) for name in rows[0].consistency
    }
    return replace(everything, rows=tuple(rows), summary=_summary(rows, length) | varies)


def _row(
    group: Group, completion: Completion, length: LengthConfig, scoring: Scoring, *, wordnet: bool
) -> Row:
    example = group.example
    length = length.asked(example.target)
    references = example.references or (example.reference,)
    counted = length_in(completion, length.unit)
    return Row(
        id=example.id,
        document=example.document,
        reference=example.reference,
        text=completion.text,
        length=counted,
        finish_reason=completion.finish_reason,
        metrics={
            "within": float(is_within(completion, length)),
            "exact": float(completion.finish_reason == "stop" and counted == length.target),
            "length_error": float(counted - length.target),
            **reference_metrics(completion.text, references, scoring.references, wordnet=wordnet),
            "repetition": repetition(completion, REPETITION_NGRAM),
            **document_metrics(completion.text, example.document),
        },
        references=references if len(references) > 1 else (),
        target=example.target,
    )


def _summary(rows: Sequence[Row], length: LengthConfig) -> dict[str, float | None]:
    lengths = LengthSummary.of(
        [row.length for row in rows],
        [row.finish_reason for row in rows],
        [length.asked(row.target) for row in rows],
    )
    names = [name for name in rows[0].metrics if name not in _COUNTED_APART]
    assert set(names) >= {*REFERENCE_METRICS, *DOCUMENT_METRICS}
    return {
        "rows": len(rows),
        "within": lengths.within,
        "exact": lengths.exact,
        "length_mean": lengths.mean,
        "length_std": lengths.spread,
        "unfinished": lengths.unfinished,
        **lengths.errors,
        **{name: _mean([row.metrics[name] for row in rows]) for name in names},
        **{f"distinct_{n}_all": distinct([row.text for row in rows], n) for n in (1, 2)},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None

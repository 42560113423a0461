"""Which rows are shown word by word, and why those. Never imports mlx."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_sumrl.evaluation.results import Row
from mlx_sumrl.reporting.report.material import Material, Sample, Subject, value_of
from mlx_sumrl.reporting.report.quality_figures import best_quality
from mlx_sumrl.reporting.report.sources import Source
from mlx_sumrl.reporting.report.wording import title_of

SHOWN = ("length", "within", "rougeL", "meteor", "bertscore_f1", "repetition", "judge_composite")
"""Scores beside a sample."""


def chosen_samples(material: Material, count: int) -> list[Sample]:
    """The first row, then those where quality rose most, fell most, and changed as in the middle row, then on from the
    first; not the best alone."""
    if not material.subjects or count < 1:
        return []
    last = material.subjects[-1]
    order = list(dict.fromkeys(row.id for row in last.evaluations[0].rows))
    why = {order[0]: "the first row"}
    quality = best_quality(material)
    if quality is not None and material.baseline is not None and len(material.subjects) > 1:
        if last.name == material.baseline:
            last = material.subjects[-2]
        base = next(one for one in material.subjects if one.name == material.baseline)
        before, after = base.by_row(quality), last.by_row(quality)
        changes = sorted(
            (after[name] - before[name], name) for name in order if name in before and name in after
        )
        if changes:
            title, who = title_of(quality), f"from {base.name} to {last.name}"
            why.setdefault(changes[-1][1], f"{title} rises most {who}")
            why.setdefault(changes[0][1], f"{title} falls most {who}")
            why.setdefault(changes[len(changes) // 2][1], f"{title} changes as in the middle row {who}")
    for name in order:
        why.setdefault(name, "one of the first rows")
    return [_sample(name, why[name], material) for name in list(why)[:count]]


def _sample(name: str, why: str, material: Material) -> Sample:
    rows = {subject.name: _row(subject, name) for subject in material.subjects}
    held = {who: row for who, row in rows.items() if row is not None}
    first = next(iter(held.values()))
    return Sample(
        name,
        why,
        first.document,
        first.reference,
        {
            who: (
                row.text,
                {metric: value for metric in SHOWN if (value := value_of(row, metric)) is not None},
            )
            for who, row in held.items()
        },
    )


def _row(subject: Subject, name: str) -> Row | None:
    return next((row for row in subject.evaluations[0].rows if row.id == name), None)


def answers_of_run(sources: Sequence[Source], count: int) -> list[Sample]:
    """What supervised runs wrote at their last evaluation."""
    found: dict[str, Sample] = {}
    for source in sources:
        for one in source.answers:
            name = str(one.get("id"))
            known = found.get(name)
            answer = (str(one.get("answer", "")), {"length": float(one.get("length") or 0)})
            found[name] = Sample(
                name,
                "from the last evaluation of the run",
                str(one.get("prompt", "")),
                str(one.get("reference", "")),
                {**(known.answers if known else {}), source.name: answer},
            )
    return list(found.values())[:count]

"""The short answer: what is shown to be better, in sentences. Never imports mlx."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from mlx_sumrl.evaluation.statistics.comparison import Comparison
from mlx_sumrl.evaluation.statistics.sentence import sentence
from mlx_sumrl.reporting.report.answer_figures import looking
from mlx_sumrl.reporting.report.comparison_figures import NOT_SHOWN
from mlx_sumrl.reporting.report.json_answers import JsonAnswers
from mlx_sumrl.reporting.report.material import Material
from mlx_sumrl.reporting.report.wording import listed, number, percent, plain, title_of


def in_short(material: Material) -> list[str]:
    """One sentence for each pair, and for the whole."""
    said = [_pair(pair, found) for pair, found in by_pair(material.comparisons).items()]
    if not material.comparisons and material.subjects:
        said.append(_alone(material))
    said += [_answers(name, one) for name, one in looking(material).items()]
    for run in material.curves if not material.subjects else ():
        steps = [row["step"] for row in run.rows]
        losses = [
            (row["evaluation/loss"], row["step"])
            for row in run.rows
            if row.get("evaluation/loss") is not None
        ]
        lowest = (
            f", lowest held-out loss {plain(min(losses)[0])} nats per token at step {min(losses)[1]}"
            if losses
            else ""
        )
        said.append(f"{run.name}: {max(steps)} steps{lowest}.")
    return said


def by_pair(comparisons: Sequence[Comparison]) -> dict[tuple[str, str], list[Comparison]]:
    """Baseline and other -> what was compared of them."""
    pairs: dict[tuple[str, str], list[Comparison]] = {}
    for one in comparisons:
        pairs.setdefault((one.baseline, one.other), []).append(one)
    return pairs


def sentences(material: Material) -> list[str]:
    """One for each comparison, with all its numbers."""
    return [f"{one.other} against {one.baseline}: {sentence(one)}" for one in material.comparisons]


def _pair(pair: tuple[str, str], found: Sequence[Comparison]) -> str:
    baseline, other = pair
    parts = []
    for verdict in ("better", "worse", "higher", "lower"):
        those = [one for one in found if one.verdict == verdict]
        if those:
            numbers = [
                f"{title_of(one.metric)} ({number(one.baseline_mean, one.metric)} → "
                f"{number(one.other_mean, one.metric)})"
                for one in those
            ]
            parts.append(f"{verdict} in {listed(numbers)}")
    none = [title_of(one.metric) for one in found if one.verdict == NOT_SHOWN]
    if not parts:
        rows = max(one.rows for one in found)
        return f"{other} against {baseline}: no difference shown in {listed(none)}, on {rows} rows."
    rest = f"; no difference shown in {listed(none)}" if none else ""
    return f"{other} is shown to be {'; '.join(parts)} than {baseline}{rest}."


def _answers(name: str, one: JsonAnswers) -> str:
    """How many are valid, how right the fields are, and what is to be had without looking."""
    parts = []
    if "valid" in one.validity:
        parts.append(f"{percent(one.validity['valid'])} of {one.rows} answers are valid JSON")
    if one.fields:
        others = [
            f"{percent(mean_f1(held))} when {blind}" for blind, held in one.blind.items() if held.fields
        ]
        rest = f" (without looking: {listed(others)})" if others else ""
        parts.append(f"mean F1 of the fields {percent(mean_f1(one))}{rest}")
    return f"{name}: {'; '.join(parts) or f'{one.rows} answers'}."


def mean_f1(one: JsonAnswers) -> float:
    """Each field weighs the same."""
    return fmean(held.f1 for held in one.fields.values())


def _alone(material: Material) -> str:
    one = material.subjects[0]
    means = [
        f"{title_of(name)} {number(one.mean(name), name)}"
        for name in ("within", "rougeL", "meteor")
        if name in one.metrics
    ]
    rows = len(one.evaluations[0].rows)
    return f"{one.name}, {rows} rows: {', '.join(means)}. There is nothing to compare it with."

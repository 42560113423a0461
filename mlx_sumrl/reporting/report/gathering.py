"""Sources -> the material of one report: who stands beside whom, and whether that is fair. Never imports mlx."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Literal

from mlx_sumrl.config import ComparisonConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.evaluation.statistics.comparison import compare_all
from mlx_sumrl.evaluation.statistics.paired_rows import shared_metrics
from mlx_sumrl.reporting.report.json_answers import JsonAnswers
from mlx_sumrl.reporting.report.material import Material, Subject
from mlx_sumrl.reporting.report.sample_rows import answers_of_run, chosen_samples
from mlx_sumrl.reporting.report.sources import BEFORE, Scored, Source, read_source
from mlx_sumrl.reporting.report.wording import title_of

TESTED = (
    *("within", "rouge1", "rouge2", "rougeL", "rougeL_recall", "meteor", "bertscore_f1", "judge_composite"),
    "repetition",
)
"""Metrics that are tested where none are named: every further one makes it harder to show any."""
ANSWERS_TESTED = ("valid", "exact_match", "f1", "jaccard")
"""The same of JSON answers; what each number is off by is tested, too."""
NAMED = 3
"""Ids that a message names."""


@dataclass(frozen=True)
class Given:
    """What was named together: one source, or one for each seed."""

    paths: tuple[Path, ...]
    name: str | None = None


@dataclass(frozen=True)
class Wanted:
    """How to put sources together."""

    baseline: str | None = None
    names: tuple[str, ...] = ()
    pool_seeds: bool = False
    rows: Literal["same", "common"] = "same"
    metrics: tuple[str, ...] = ()
    samples: int = 4


def gather(given: Sequence[Given], wanted: Wanted, options: ComparisonConfig) -> Material:
    """Read, group, check and compare.

    Raises:
        UserError: something cannot be read, or cannot be compared.
    """
    groups = [
        [read_source(path, one.name if len(one.paths) == 1 else None) for path in one.paths] for one in given
    ]
    labels = [one.name or _label(group) for one, group in zip(given, groups, strict=True)]
    if wanted.pool_seeds:
        groups, labels = _pooled(groups, labels)
    if wanted.names:
        if len(wanted.names) != len(groups):
            raise UserError(
                f"--names has {len(wanted.names)} names ({', '.join(wanted.names)}) for {len(groups)} things to "
                f"compare ({', '.join(labels)}): give one for each"
            )
        labels = list(wanted.names)
    labels = _distinct(labels, groups)
    subjects, prompts, warnings = _subjects(groups, labels)
    subjects, said = _same_rows(subjects, wanted.rows)
    warnings += said + _unlike(subjects, prompts)
    baseline = _baseline(subjects, wanted.baseline)
    sources = [source for group in groups for source in group]
    material = Material(
        title=" against ".join(labels) if len(labels) < 4 else f"{labels[0]} and {len(labels) - 1} others",
        subjects=tuple(subjects),
        baseline=baseline,
        curves=tuple(source.curves for source in sources if source.curves and source.curves.rows),
        json_answers=_json_answers(groups, labels),
        options={_key(source, sources): source.options for source in sources if source.options},
        commands={_key(source, sources): source.command for source in sources if source.command},
        warnings=tuple(warnings),
    )
    if baseline is not None and len(subjects) > 1:
        metrics = _tested(material, wanted.metrics)
        results = {subject.name: subject.evaluations for subject in subjects}
        material = replace(material, comparisons=compare_all(results, baseline, metrics, options))
    elif not subjects:
        material = _answers_compared(material, wanted, options)
    samples = chosen_samples(material, wanted.samples)
    if not samples:
        samples = answers_of_run(sources, wanted.samples)
    return replace(material, samples=tuple(samples))


def _label(group: Sequence[Source]) -> str:
    if len(group) == 1:
        return group[0].name
    columns = zip(*(source.name for source in group), strict=False)
    same = takewhile(lambda letters: len(set(letters)) == 1, columns)
    start = "".join(letters[0] for letters in same).rstrip("-_. ")
    for word in ("seed", "s"):
        start = start.removesuffix(f"-{word}").removesuffix(f"_{word}")
    return start or group[0].name


def _distinct(labels: Sequence[str], groups: Sequence[Sequence[Source]]) -> list[str]:
    """Two of one name get their paths for names."""
    return [
        label if labels.count(label) == 1 else str(group[0].path)
        for label, group in zip(labels, groups, strict=True)
    ]


def _pooled(groups: Sequence[list[Source]], labels: Sequence[str]) -> tuple[list[list[Source]], list[str]]:
    """Groups whose options are the same but for the seed, put together."""
    found: dict[str, list[Source]] = {}
    names: dict[str, list[str]] = {}
    for place, (group, label) in enumerate(zip(groups, labels, strict=True)):
        key = group[0].kin if len(group) == 1 and group[0].kin else str(place)
        found.setdefault(key, []).extend(group)
        names.setdefault(key, []).append(label)
    return list(found.values()), [
        names[key][0] if len(names[key]) == 1 else _label(group) for key, group in found.items()
    ]


def _subjects(
    groups: Sequence[Sequence[Source]], labels: Sequence[str]
) -> tuple[list[Subject], dict[str, set[str]], list[str]]:
    """One thing alone is shown evaluation by evaluation; several by the last of each, and what they began from."""
    warnings: list[str] = []
    held: dict[str, list[Scored]] = {}
    if len(groups) == 1:
        names = [name for name in groups[0][0].scored if all(name in source.scored for source in groups[0])]
        if len(groups[0]) == 1 and not groups[0][0].is_run:
            names = list(groups[0][0].scored)
        for name in names:
            shown = labels[0] if len(names) == 1 and not groups[0][0].is_run else name
            held[shown] = [source.scored[name] for source in groups[0]]
    else:
        began = [
            [source.scored[BEFORE] for source in group if source.is_run and BEFORE in source.scored]
            for group in groups
        ]
        first = next((one for one in began if one), None)
        if first:
            held[BEFORE] = first
            texts = [[row.text for row in scored.evaluation.rows] for one in began for scored in one]
            if any(one != texts[0] for one in texts):
                warnings.append(
                    f"the runs did not begin from one policy: {BEFORE!r} is that of {labels[began.index(first)]}"
                )
        for group, label in zip(groups, labels, strict=True):
            last = [list(source.scored.values())[-1] for source in group if source.scored]
            if last:
                name = f"{label} (its result)" if label in held else label
                held[name] = last
    subjects = []
    for name, scored in held.items():
        asked = {one.asked for one in scored}
        if len(asked) > 1:
            raise UserError(f"the seeds of {name} were asked for different lengths: compare them one by one")
        subjects.append(Subject(name, tuple(one.evaluation for one in scored), asked.pop()))
    prompts = {name: {one.prompts for one in scored if one.prompts} for name, scored in held.items()}
    return subjects, prompts, warnings


def _same_rows(
    subjects: Sequence[Subject], rows: Literal["same", "common"]
) -> tuple[list[Subject], list[str]]:
    """Everyone on the same rows, or an error that says what to do."""
    ids = {
        f"{subject.name}, seed {place}" if len(subject.evaluations) > 1 else subject.name: [
            row.id for row in one.rows
        ]
        for subject in subjects
        for place, one in enumerate(subject.evaluations)
    }
    documents: dict[str, str] = {}
    for subject in subjects:
        for row in subject.rows():
            if documents.setdefault(row.id, row.document) != row.document:
                raise UserError(
                    f"the row {row.id!r} of {subject.name} has another document than that of the others: evaluate "
                    "all of them on one file"
                )
    if not ids:
        return list(subjects), []
    everyone = set.intersection(*map(set, ids.values()))
    anyone = set.union(*map(set, ids.values()))
    if everyone == anyone:
        return list(subjects), []
    missing = sorted(anyone - everyone)
    lacking = next(name for name, held in ids.items() if missing[0] not in held)
    some = ", ".join(missing[:NAMED])
    if rows == "same" or not everyone:
        way = (
            f"or compare the {len(everyone)} they share with --rows common" if everyone else "they share none"
        )
        raise UserError(
            f"{len(missing)} of {len(anyone)} rows are not in all ({some} not in {lacking}): evaluate all on the same "
            f"rows, {way}"
        )
    kept = [
        replace(
            subject,
            evaluations=tuple(
                replace(one, rows=tuple(row for row in one.rows if row.id in everyone))
                for one in subject.evaluations
            ),
        )
        for subject in subjects
    ]
    return kept, [
        f"only the {len(everyone)} rows that all have are compared; {len(missing)} others are left out"
    ]


def _unlike(subjects: Sequence[Subject], prompts: dict[str, set[str]]) -> list[str]:
    """What is not the same for all, and makes a comparison say less."""
    found = []
    if len({one for held in prompts.values() for one in held}) > 1:
        found.append("not all were given the same prompts: part of any difference may be the prompt's")
    asked = dict.fromkeys(str(subject.asked) for subject in subjects if subject.asked)
    if len(asked) > 1:
        found.append(
            f"not all were asked for the same length ({', '.join(asked)}): within and exact mean other things"
        )
    missing = {
        name: why for subject in subjects for one in subject.evaluations for name, why in one.missing.items()
    }
    found += [f"{title_of(name)} is missing: {why.rstrip('.')}" for name, why in missing.items()]
    references: dict[str, str] = {}
    if any(
        references.setdefault(row.id, row.reference) != row.reference
        for subject in subjects
        for row in subject.rows()
    ):
        found.append(
            "some rows have other references than the same rows of others: overlap cannot be compared"
        )
    return found


def _baseline(subjects: Sequence[Subject], wanted: str | None) -> str | None:
    names = [subject.name for subject in subjects]
    if wanted is not None and wanted not in names:
        raise UserError(
            f"--baseline {wanted} is not among what is compared ({', '.join(names) or 'nothing'})"
        )
    return wanted or (BEFORE if BEFORE in names else names[0] if names else None)


def _tested(material: Material, wanted: Sequence[str]) -> list[str]:
    have = material.metrics()
    unknown = [name for name in wanted if name not in have]
    if unknown:
        raise UserError(f"--metrics {unknown[0]} is not in all that is compared; there are {', '.join(have)}")
    return list(wanted) or material.metrics(*TESTED) or have


def _answers_compared(material: Material, wanted: Wanted, options: ComparisonConfig) -> Material:
    """The same for files of JSON answers."""
    results = {name: [one.scored] for name, one in material.json_answers.items() if one.scored.rows}
    if wanted.baseline is not None and wanted.baseline not in results:
        raise UserError(
            f"--baseline {wanted.baseline} is not among what is compared ({', '.join(results) or 'nothing'})"
        )
    if len(results) < 2:
        return material
    have = shared_metrics(results)
    unknown = [name for name in wanted.metrics if name not in have]
    if unknown:
        raise UserError(f"--metrics {unknown[0]} is not in all that is compared; there are {', '.join(have)}")
    usual = [name for name in have if name in ANSWERS_TESTED or name.endswith("/absolute_error")]
    baseline = wanted.baseline or next(iter(results))
    compared = compare_all(results, baseline, list(wanted.metrics) or usual or list(have), options)
    return replace(material, baseline=baseline, comparisons=compared)


def _json_answers(groups: Sequence[Sequence[Source]], labels: Sequence[str]) -> dict[str, JsonAnswers]:
    found = {}
    for group, label in zip(groups, labels, strict=True):
        for source in group:
            for name, one in source.json_answers.items():
                part = name.removeprefix(source.name)
                found[f"{label if len(group) == 1 else source.name}{part}"] = one
    blind = {name: held for one in found.values() for name, held in one.blind.items()}
    return found | {name: held for name, held in blind.items() if name not in found}


def _key(source: Source, sources: Sequence[Source]) -> str:
    return source.name if sum(one.name == source.name for one in sources) == 1 else str(source.path)

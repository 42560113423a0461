"""A study before any time is spent: its runs, what they are measured on, and whether all of it is to be had."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.nodes import read_nodes
from mlx_sumrl.config import DataConfig, RunConfig, StudyConfig
from mlx_sumrl.data.examples import Which, check_columns, config_rows
from mlx_sumrl.errors import UserError
from mlx_sumrl.options import tree
from mlx_sumrl.options.errors import shown
from mlx_sumrl.options.values import from_values
from mlx_sumrl.policy.loading import checked_config, model_folder
from mlx_sumrl.rewards.scoring import build_rewards
from mlx_sumrl.study.grid import StudyRun, common_run, runs_of
from recipes.evaluate import EvaluateConfig
from recipes.exporting import exported_step

TRAINED_ON = ("train", "train_split", "train_rows")
"""Options of `data` that say nothing about an evaluation."""
GIVEN = ("out", "predictions", "references")
"""Options of `recipes.evaluate` that are the study's to give; `model` is, too, but to a baseline."""


@dataclass(frozen=True)
class Measurement:
    """One model on one set."""

    set: str
    options: dict[str, Any]
    """As a file of `recipes.evaluate` would have them."""
    file: Path
    """Where the result is, once it is whole."""


@dataclass(frozen=True)
class Subject:
    """A run, or a baseline, which is a model without one."""

    name: str
    line: str
    run: StudyRun | None
    measurements: tuple[Measurement, ...]

    @property
    def is_trained(self) -> bool:
        """Whether there is nothing to train: the run has its results and its model, or there is none."""
        if self.run is None:
            return True
        data = self.run.config.data
        measured = data.evaluation is None and data.grammar is None
        final = self.run.folder / "evaluation" / "final.json"  # the last that a run writes, where it has rows
        exported = exported_step(self.run.folder) is not None and self.run.model.is_dir()
        return exported and (measured or final.is_file())


@dataclass(frozen=True)
class Plan:
    """All that a study does, in its order."""

    subjects: tuple[Subject, ...]
    baseline: str
    """The line that reports hold the others against."""

    @property
    def lines(self) -> dict[str, list[Subject]]:
        """Those that are put together, by the name of their line."""
        found: dict[str, list[Subject]] = {}
        for one in self.subjects:
            found.setdefault(one.line, []).append(one)
        return found


def planned(study: StudyConfig) -> Plan:
    """What is to be done. Raises `UserError` for whatever would go wrong later and can be known now."""
    runs = runs_of(study)
    subjects = [*_baselines(study), *(_subject(study, run) for run in runs)]
    lines = list(dict.fromkeys(one.line for one in subjects))
    if study.baseline is not None and study.baseline not in lines:
        raise UserError(f"baseline is {study.baseline!r}, which is no line of the table: {', '.join(lines)}")
    if study.cluster is not None:
        read_nodes(study.cluster)
    _check_rewards(runs)
    _check_data(runs, subjects)
    return Plan(tuple(subjects), study.baseline or lines[0])


def _baselines(study: StudyConfig) -> Iterator[Subject]:
    for name, own in study.baselines.items():
        common = common_run(study)
        if common.policy.model is None and "model" not in own:
            raise UserError(
                f"baselines.{name}: policy.tiny makes another model for each seed, so there is no untrained one: leave "
                "the baseline out, or give it a `model`"
            )
        yield Subject(name, name, None, _measured(study, name, name, common, str(common.policy.model), own))


def _subject(study: StudyConfig, run: StudyRun) -> Subject:
    return Subject(
        run.name, run.line, run, _measured(study, run.name, run.line, run.config, str(run.model), {})
    )


def _measured(
    study: StudyConfig, name: str, line: str, asked: RunConfig, model: str, own: dict[str, Any]
) -> tuple[Measurement, ...]:
    """What is measured of one model that was asked as in ``asked``; ``own`` options come above those of each set."""
    untouched = study.untouched or tree.lookup(study.options, ("policy", "model"))
    found = []
    for title, given in study.evaluations.items():
        whose = f"evaluations.{title} of {line}"
        for option in (
            *(name for name in GIVEN if name in given or name in own),
            *({"model"} & given.keys()),
        ):
            raise UserError(f"{whose}: {option} cannot be set, since the study gives it")
        above = tree.merged(given, own)
        options = tree.merged(
            {
                "model": model,
                "dtype": asked.policy.dtype,
                "data": _asked(asked.data, above.get("data")),
                "length": asked.length.model_dump(mode="json", exclude={"targets"}),
                "answer": asked.answer.model_dump(mode="json"),
                "max_tokens": asked.sampling.max_tokens,
                "batch_size": asked.evaluation.batch_size,
                **({"untouched": untouched} if isinstance(untouched, str) else {}),
            },
            above,
        )
        from_values(EvaluateConfig, options, whose)
        file = study.folder / "evaluation" / title / f"{name}.json"
        found.append(Measurement(title, options, file))
    return tuple(found)


def _asked(data: DataConfig, above: Any) -> dict[str, Any]:
    """How a run put documents to its model, and where held-out ones are; how many are measured is not its business."""
    options = data.model_dump(mode="json", exclude={*TRAINED_ON, "evaluation_rows"})
    if isinstance(above, dict) and above.get("evaluation") is not None:
        options["grammar"] = None
    return options


def _check_rewards(runs: list[StudyRun]) -> None:
    built: set[str] = set()
    for run in runs:
        for stage in run.config.stages:
            key = json.dumps(
                [stage.model_dump(mode="json")["rewards"], run.config.length.model_dump(mode="json")]
            )
            if key in built:
                continue
            try:
                build_rewards(stage, run.config.length)
            except UserError as error:
                raise UserError(f"method {run.method}, stage {stage.name}: {error}") from None
            built.add(key)


def _check_data(runs: list[StudyRun], subjects: list[Subject]) -> None:
    """Every source is read once, and every model's folder looked at. Raises `UserError`."""
    seen: set[tuple[Any, ...]] = set()

    def read(data: DataConfig, which: Which, whose: str) -> None:
        rows_of = (data.train, data.train_split, data.train_rows)
        if which == "evaluation":
            rows_of = (data.evaluation, data.evaluation_split, data.evaluation_rows)
        columns = (data.document_column, data.reference_column, data.id_column, data.more_reference_columns)
        if (which, rows_of, columns) in seen or data.grammar is not None:
            return
        seen.add((which, rows_of, columns))
        try:
            rows = config_rows(data, which, 0)
            if rows is None or not rows.rows:
                raise UserError(
                    f"data.{which} is {shown(rows_of[0])}, and has no rows: name a source that has some"
                )
            check_columns(data, rows.columns, rows.name, f"data.{which}")
        except UserError as error:
            option = "" if f"data.{which}" in str(error) else f"data.{which}: "
            raise UserError(f"{whose}: {option}{error}") from None

    def look(model: str | None, whose: str) -> None:
        if model is None or (model,) in seen:
            return
        seen.add((model,))
        try:
            checked_config(model_folder(model), model)
        except UserError as error:
            raise UserError(f"{whose}: {error}") from None

    for run in runs:
        whose = f"method {run.method}"
        read(run.config.data, "train", whose)
        if run.config.data.evaluation is not None:
            read(run.config.data, "evaluation", whose)
        look(run.config.policy.model, whose)
    for one in subjects:
        for measurement in one.measurements:
            options = EvaluateConfig.model_validate(tree.completed(EvaluateConfig, measurement.options))
            whose = f"evaluations.{measurement.set} of {one.line}"
            read(options.data, "evaluation", whose)
            look(options.untouched, f"{whose}: untouched")
            if one.run is None:
                look(options.model, whose)

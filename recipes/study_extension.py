"""A study that there is, with what a file adds to it: methods, sets of rewards, seeds, evaluations, baselines.

Invariant: what the study has begun keeps its options, or nothing is added: no run is taken for one of other options.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mlx_sumrl.config import StudyConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.options import tree
from mlx_sumrl.options.errors import shown
from mlx_sumrl.reporting.run_folder import RunFolder
from recipes.study_plan import Plan, planned

HELP = (
    "a study's folder: what the file has more than it (methods, rewards, seeds, evaluations) is added, and what is "
    "done is kept"
)


def extended(study: StudyConfig, path: Path) -> tuple[StudyConfig, Plan, RunFolder]:
    """``study`` in the folder of the one that is there, its plan, and that folder, which has the new options now.

    Raises `UserError` where there is no study, or something that it has begun would have other options.
    """
    _, folder = RunFolder.open(path, StudyConfig)
    try:
        study = study.model_copy(update={"runs_dir": path.parent, "name": path.name})
        plan = planned(study)
        _check(plan, path / "options")
        folder.keep_options(study)
    except BaseException:
        folder.close()
        raise
    return study, plan, folder


def _check(plan: Plan, options: Path) -> None:
    asked: dict[Path, dict[str, Any]] = {}
    for one in plan.subjects:
        if one.run is not None:
            asked[options / f"{one.name}.yaml"] = one.run.options
        for measurement in one.measurements:
            asked[options / measurement.set / f"{one.name}.yaml"] = measurement.options
    for file in sorted(options.rglob("*.yaml")):
        if file not in asked:
            raise UserError(
                f"the study has begun {file.relative_to(options).with_suffix('')}, which the file has not: add it, or "
                "make another study by leaving --extend out"
            )
        begun, now = yaml.safe_load(file.read_text(encoding="utf-8")), _plain(asked[file])
        if begun != now:
            path = _first_difference(begun, now)
            raise UserError(
                f"the study has begun {file.relative_to(options).with_suffix('')} with {tree.dotted(path)} "
                f"{shown(tree.lookup(begun, path))}, and the file says {shown(tree.lookup(now, path))}: let it say the "
                "same, or make another study by leaving --extend out"
            )


def _plain(options: dict[str, Any]) -> Any:
    """As they are read back once they are written."""
    return yaml.safe_load(yaml.safe_dump(options, sort_keys=False, allow_unicode=True))


def _first_difference(one: Any, other: Any) -> tuple[str | int, ...]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            if key not in one or key not in other:
                return (key,)
            if one[key] != other[key]:
                return (key, *_first_difference(one[key], other[key]))
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        place = next(place for place, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
        return (place, *_first_difference(one[place], other[place]))
    return ()

"""Run folders and evaluation files, read: what each holds that a report can show. Never imports mlx."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_sumrl.errors import UserError
from mlx_sumrl.evaluation.results import Evaluation
from mlx_sumrl.reporting.curves import RunCurves, read_curves
from mlx_sumrl.reporting.report.json_answers import JsonAnswers, read_json_answers
from mlx_sumrl.reporting.report.material import Asked
from mlx_sumrl.reporting.run_folder import METRICS, read_record

BEFORE = "before"
MATCHED = "length-matched"
SUPERVISED = "step-"
"""How names of a supervised run's evaluations begin."""
OWN = ("seed", "name", "runs_dir", "out", "command", "report", "curves", "reporting", "checkpoint", "export")
"""Options, and rooms of them, in which two seeds of one thing may differ: none changes what is learned."""


@dataclass(frozen=True)
class Scored:
    """One evaluation as its file has it."""

    evaluation: Evaluation
    asked: Asked | None
    prompts: str | None
    """Hash of what was asked of the model; older files have none."""


@dataclass(frozen=True)
class Source:
    """One run folder or one file."""

    path: Path
    name: str
    scored: Mapping[str, Scored]
    """Of a run each of its evaluations in order, the last one being the run's result; of a file one."""
    curves: RunCurves | None = None
    json_answers: Mapping[str, JsonAnswers] = field(default_factory=dict)
    answers: Sequence[Mapping[str, Any]] = ()
    """Sample answers of a supervised run: id, prompt, reference, answer."""
    options: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""

    @property
    def is_run(self) -> bool:
        return self.path.is_dir()

    @property
    def kin(self) -> str | None:
        """The same for two seeds of one thing; None where the file does not say how it was made."""
        options = {name: value for name, value in self.options.items() if name.partition(".")[0] not in OWN}
        return json.dumps(options, sort_keys=True, default=str) if options else None


def read_source(path: Path, name: str | None = None) -> Source:
    """What is in ``path``.

    Raises:
        UserError: there is nothing, or nothing that a report can show.
    """
    if path.is_dir():
        return _run(path, name or path.resolve().name)
    if not path.exists():
        raise UserError(
            f"{path} is not there: name a run's folder or a file that recipes.evaluate --out wrote"
        )
    content = _json(path)
    return _file(path, name or path.stem, content)


def _run(path: Path, name: str) -> Source:
    record = read_record(path)
    options = record["options"]
    scored: dict[str, Scored] = {}
    for file in _in_order(path / "evaluation", options):
        content = _json(file)
        if _is_evaluation(content):
            stages = [stage["name"] for stage in options.get("stages") or ()]
            label = f"after {file.stem}" if file.stem in stages else file.stem
            scored[label] = _scored(file, content, options.get("length"))
    curves = read_curves(path, name) if (path / METRICS).is_file() else None
    answers: Sequence[Mapping[str, Any]] = ()
    steps = sorted((path / "evaluation").glob(f"{SUPERVISED}*.json"))
    if steps:
        last = _json(steps[-1])
        answers = [one for one in last.get("samples", ()) if isinstance(one, Mapping)]
    if not scored and not (curves and curves.rows) and not answers:
        raise UserError(f"the run in {path} has neither a step nor an evaluation yet: wait for its first")
    return Source(path, name, scored, curves, {}, answers, dotted(options), str(record.get("command", "")))


def _in_order(folder: Path, options: Mapping[str, Any]) -> list[Path]:
    """Evaluations as they were made: before all, length-matched, then stage by stage."""
    stages = [stage["name"] for stage in options.get("stages") or ()]
    order = {name: place for place, name in enumerate([BEFORE, MATCHED, *stages])}
    files = [
        file
        for file in sorted(folder.glob("*.json"))
        if file.stem != "final" and not file.stem.startswith(SUPERVISED)
    ]
    return sorted(files, key=lambda file: (order.get(file.stem, len(order)), file.stem))


def _file(path: Path, name: str, content: Mapping[str, Any]) -> Source:
    raw_options = content.get("options")
    options = dotted(raw_options) if isinstance(raw_options, Mapping) else {}
    command = str(content.get("command") or options.get("command") or "")
    if _is_evaluation(content):
        return Source(path, name, {name: _scored(path, content)}, options=options, command=command)
    one = read_json_answers(content)
    if one is not None:
        return Source(path, name, {}, json_answers={name: one}, options=options, command=command)
    several = {
        f"{name}: {part}": found
        for part, held in content.items()
        if isinstance(held, Mapping) and (found := read_json_answers(held)) is not None
    }
    if several:
        return Source(path, name, {}, json_answers=several, options=options, command=command)
    raise UserError(
        f"{path} holds no evaluation (rows with metrics, and a summary): name a run's folder or a file that "
        "recipes.evaluate --out wrote"
    )


def _scored(path: Path, content: Mapping[str, Any], length: Mapping[str, Any] | None = None) -> Scored:
    try:
        evaluation = Evaluation.from_json(dict(content))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is no whole evaluation ({error}): write it again with recipes.evaluate"
        ) from None
    if not evaluation.rows:
        raise UserError(f"{path} has no rows: evaluate on some")
    said = content.get("asked") or (None if length and length.get("targets") else length)
    asked = None
    if isinstance(said, Mapping) and isinstance(said.get("target"), int):
        asked = Asked(said["target"], int(said.get("tolerance") or 0), evaluation.unit)
    prompts = content.get("prompts_sha256")
    return Scored(evaluation, asked, prompts if isinstance(prompts, str) else None)


def _is_evaluation(content: Mapping[str, Any]) -> bool:
    rows = content.get("rows")
    return "fields" not in content and (
        isinstance(rows, list)
        and all(isinstance(row, Mapping) and "metrics" in row for row in rows)
        and "summary" in content
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({error}): name a run's folder or an evaluation file"
        ) from None
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds {type(content).__name__}, not an evaluation: name a run's folder or such a file"
        )
    return content


def dotted(options: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested options as ``a.b.c``; lists of options too, by their place."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        below: Mapping[str, Any] | None = value if isinstance(value, Mapping) else None
        if isinstance(value, list | tuple) and any(isinstance(one, Mapping) for one in value):
            below = {str(place): one for place, one in enumerate(value)}
        if below:
            found |= dotted(below, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found

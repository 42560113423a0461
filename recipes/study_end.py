"""What a study leaves: tables, study.json, study.md, a report for each set; made anew each time from what is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from mlx_sumrl.config import StudyConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.reporting.json_files import replacing, write_json
from mlx_sumrl.study.budgets import allowed, made
from mlx_sumrl.study.numbers import Line, line_of
from mlx_sumrl.study.tables import (
    Trained,
    budget_notes,
    budgets_table,
    gap_notes,
    markdown,
    results_table,
    to_json,
)
from recipes.study_plan import Plan

Note = Callable[[str], None]


def lines_of(study: StudyConfig, plan: Plan, title: str) -> list[Line]:
    """What is measured by now on a set, in the order of the plan."""
    folder = study.folder / "evaluation" / title
    lines = [line_of(name, [one.name for one in those], folder) for name, those in plan.lines.items()]
    return [line for line in lines if line.files]


def finish(study: StudyConfig, plan: Plan, console: Console, note: Note) -> list[str]:
    """Write and show everything; what could not be written."""
    sets = {title: lines_of(study, plan, title) for title in study.evaluations}
    trained = trained_of(plan)
    notes = [*budget_notes(trained), *missing_notes(study, plan), *gap_notes(sets)]
    write_json(study.folder / "study.json", to_json(study.name, sets, trained, notes))
    with replacing(study.folder / "study.md") as file:
        file.write(markdown(study.name, sets, trained, notes).encode())
    for title, lines in sets.items():
        if lines:
            console.print(results_table(f"{study.name}, {title}", lines))
    if trained:
        console.print(budgets_table(trained))
    for one in notes:
        console.print(f"mind: {one}", highlight=False, markup=False)
    written = [study.folder / "study.json", study.folder / "study.md"]
    failures = []
    for title, lines in sets.items():
        if not lines:
            continue
        try:
            written.append(_report(study, plan, title, lines, note))
        except UserError as error:
            note(f"the report on {title} cannot be made: {error}")
            failures.append(f"the report on {title}")
    for path in written:
        console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
    return failures


def trained_of(plan: Plan) -> list[Trained]:
    """Each line's budget, and what its runs have made of it."""
    found = []
    for name, those in plan.lines.items():
        runs = [one.run for one in those if one.run is not None]
        if runs:
            budgets = {run.name: made(run.config, run.folder) for run in runs}
            begun = {
                run: budget for run, budget in budgets.items() if budget.steps or budget.supervised_steps
            }
            found.append(Trained(name, allowed(runs[0].config), begun))
    return found


def missing_notes(study: StudyConfig, plan: Plan) -> list[str]:
    """A sentence for each set that does not have everything."""
    found = []
    for title in study.evaluations:
        lacking = [
            one.name
            for one in plan.subjects
            if not all(it.file.is_file() for it in one.measurements if it.set == title)
        ]
        if lacking:
            found.append(f"{title} is without {', '.join(lacking)}")
    return found


def _report(study: StudyConfig, plan: Plan, title: str, lines: list[Line], note: Note) -> Path:
    """The report of `recipes.compare` over all that is measured on a set; report.html's path. Raises `UserError`."""
    # scipy and matplotlib take seconds, which nobody should wait for before the first run
    from mlx_sumrl.reporting.report.gathering import Given, Wanted, gather
    from mlx_sumrl.reporting.report.writing import write_report

    folder = study.folder / "evaluation" / title
    given = [Given(tuple(folder / f"{run}.json" for run in line.files), line.name) for line in lines]
    baseline = plan.baseline
    if baseline not in [line.name for line in lines]:
        baseline = lines[0].name
        note(f"{title}: {plan.baseline} has no result, so the report holds the others against {baseline}")
    material = gather(given, Wanted(baseline=baseline), study.comparison)
    return write_report(material, study.folder / "report" / title)[0]

"""Many runs as one question: method by reward by seed, each measured on the same rows, with one report of all.

    python -m recipes.study --config recipes/configs/study.yaml
    python -m recipes.study --resume runs/study                  # after Ctrl-C, a crash or a power cut
    python -m recipes.study --config more.yaml --extend runs/study

Every run is a `recipes.grpo_staged` in a process of its own, every evaluation a `recipes.evaluate`. What is finished
is never done again; what was interrupted goes on. At the end: a table with means and spread over seeds, study.json,
study.md, and the report of `recipes.compare` for each evaluation.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mlx_sumrl.config import StudyConfig
from mlx_sumrl.errors import UserError
from mlx_sumrl.options.command_line import exit_code_of, parse_command
from mlx_sumrl.reporting.progress import PlainProgress, Progress, duration, make_progress
from mlx_sumrl.reporting.report.wording import listed
from mlx_sumrl.study.numbers import line_of
from mlx_sumrl.study.tables import COLUMNS, results_table, shown
from mlx_sumrl.training.interrupts import finish_step_on_interrupt
from recipes.opened_run import opened
from recipes.study_end import finish, lines_of
from recipes.study_extension import HELP, extended
from recipes.study_plan import Plan, planned
from recipes.study_work import Work

DESCRIPTION = (
    "Train a grid of runs, method by reward by seed, measure each on the same rows, and compare them."
)
POLL_S = 0.1
"""Between two looks at the programs that run."""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, check everything, and do what is left to do."""
    command = parse_command(
        StudyConfig,
        argv,
        prog="python -m recipes.study",
        description=DESCRIPTION,
        extra={"extend": HELP},
        based=("options",),
    )
    more = command.extra.get("extend")
    plan = None
    if isinstance(command.run, StudyConfig) and more is not None:
        study, plan, folder = extended(command.run, Path(more))
    elif more is not None:
        raise UserError(
            f"--resume {command.run} adds nothing: leave out --extend {more}, or give it --config"
        )
    else:
        if isinstance(command.run, StudyConfig):
            plan = planned(command.run)  # before a folder is made
        study, folder = opened(command, StudyConfig)
    again = f"python -m recipes.study --resume {shlex.quote(str(folder.path))}"
    with folder, make_progress() as progress:
        plan = plan or planned(study)
        try:
            failures = the_job(study, plan, progress)
        except KeyboardInterrupt:
            progress.finish()
            print(f"stopped; go on with: {again}", file=sys.stderr)
            raise
        failures += finish(study, plan, Console(), progress.note)
    if failures:
        raise UserError(
            f"{len(failures)} of the study's parts failed, and the rest is done: {listed(failures)}; their logs are in "
            f"{study.folder / 'logs'}; mend what they say, and try them again with: {again}"
        )


def the_job(study: StudyConfig, plan: Plan, progress: Progress) -> list[str]:
    """Everything that is not done yet, ``at_once`` runs side by side; what failed."""
    works = [
        # One live line cannot show several runs.
        Work(
            one,
            f"{place} of {len(plan.subjects)}",
            study,
            progress if study.at_once == 1 else PlainProgress(),
        )
        for place, one in enumerate(plan.subjects, 1)
    ]
    waiting = deque(work for work in works if work.left)
    if len(waiting) < len(works):
        progress.note(f"{len(works) - len(waiting)} of {len(works)} runs and baselines are done already")
    working: list[Work] = []
    with finish_step_on_interrupt(progress.note) as stop:
        try:
            while working or (waiting and not stop.asked):
                while waiting and len(working) < study.at_once and not stop.asked:
                    working.append(waiting.popleft())
                for work in list(working):
                    if stop.asked:
                        work.ask_to_stop()
                    if not work.advance():
                        working.remove(work)
                        if not work.left:
                            tell(work, study, progress)
                            if work.subject.run is not None and (waiting or working):
                                show(plan, study)
                time.sleep(POLL_S)
        finally:
            for work in working:
                work.end()
        if stop.asked and any(work.left for work in works):
            raise KeyboardInterrupt
    return [work.failure for work in works if work.failure is not None]


def tell(work: Work, study: StudyConfig, progress: Progress) -> None:
    """What has just been finished, by the first of its evaluations."""
    title = next(iter(study.evaluations))
    line = line_of(work.subject.name, [work.subject.name], study.folder / "evaluation" / title)
    numbers = [f"{COLUMNS[name].title} {shown(line, name)}" for name in ("within", "meteor", "rougeL")]
    progress.note(f"{work.subject.name}: done in {duration(work.seconds)}; {', '.join(numbers)} on {title}")


def show(plan: Plan, study: StudyConfig) -> None:
    """The table as it stands."""
    title = next(iter(study.evaluations))
    Console().print(results_table(f"{study.name} so far, {title}", lines_of(study, plan, title)))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))

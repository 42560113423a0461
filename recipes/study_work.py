"""What is left to do of one run or baseline of a study: train, then measure on each set, each in a program of its own.

Invariant: what is on disk is not done again. A run that was interrupted goes on from its last checkpoint; a
measurement is there whole or not at all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from mlx_sumrl.config import StudyConfig
from mlx_sumrl.reporting.json_files import replacing, rows
from mlx_sumrl.reporting.progress import Progress
from mlx_sumrl.reporting.run_folder import CONFIG, METRICS
from recipes.kept_program import KeptProgram
from recipes.study_plan import Measurement, Subject

LOOK_S = 1.0
"""Between two looks at a run's metrics."""


def threads_of(at_once: int) -> dict[str, str]:
    """Variables that leave each of so many programs its share of the cores, so that none waits for another's threads.

    OpenBLAS's threads wait busily: an evaluation of two threads took twice the CPU time of one beside busy cores.
    """
    return {} if at_once == 1 else {"OPENBLAS_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}


class Work:
    """One subject's programs, one after the other."""

    def __init__(self, subject: Subject, place: str, study: StudyConfig, progress: Progress) -> None:
        self.subject = subject
        self.place = place
        """Which of how many."""
        self.failure: str | None = None
        """What failed, in words, once something has."""
        self._study = study
        self._progress = progress
        self._program: KeptProgram | None = None
        self._finish: Callable[[], None] = lambda: None
        self._doing = ""
        self._began: float | None = None
        self._looked = 0.0
        self._shown: tuple[str, int] = ("", 0)
        self._asked = False

    @property
    def left(self) -> bool:
        """Whether something is to be done."""
        return not self.subject.is_trained or bool(self._open())

    @property
    def seconds(self) -> float:
        """Since its first program began here."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    def advance(self) -> bool:
        """Look after the program, and start the next where one has ended; False once nothing is left or one failed."""
        if self._program is not None:
            code = self._program.poll()
            if code is None:
                self._look()
                return True
            self._progress.finish()
            self._look_no_more(code)
        if self._asked or self.failure is not None or not self.left:
            return False
        self._start()
        return True

    def ask_to_stop(self) -> None:
        """Let the program end as soon as it has saved, and start no other."""
        if not self._asked and self._program is not None:
            self._program.ask_to_stop()
        self._asked = True

    def end(self) -> None:
        """Kill the program, if one runs."""
        if self._program is not None:
            self._program.end()
            self._program = None

    def _open(self) -> list[Measurement]:
        return [one for one in self.subject.measurements if not one.file.is_file()]

    def _start(self) -> None:
        self._began = time.monotonic() if self._began is None else self._began
        name, folder = self.subject.name, self._study.folder
        if not self.subject.is_trained:
            self._doing, log = "training", folder / "logs" / f"{name}.log"
            words = self._training_words()
        else:
            measurement = self._open()[0]
            self._doing, log = (
                f"measuring on {measurement.set}",
                folder / "logs" / f"{name}.{measurement.set}.log",
            )
            words = self._measuring_words(measurement)
            self._progress.note(f"{name}: {self._doing}")
        self._program = KeptProgram(words, log, threads_of(self._study.at_once))

    def _training_words(self) -> list[str]:
        run = self.subject.run
        assert run is not None
        cluster = [] if self._study.cluster is None else ["--cluster", str(self._study.cluster)]
        self._finish = lambda: None
        self._shown = ("", 0)
        if (run.folder / CONFIG).is_file():
            self._progress.note(f"{run.name} ({self.place}): going on with it")
            return ["recipes.grpo_staged", "--resume", str(run.folder), *cluster]
        self._progress.note(f"{run.name} ({self.place}): begins")
        options = _written(self._study.folder / "options" / f"{run.name}.yaml", run.options)
        return ["recipes.grpo_staged", "--config", str(options), *cluster]

    def _measuring_words(self, measurement: Measurement) -> list[str]:
        title, file = measurement.set, measurement.file
        options = _written(
            self._study.folder / "options" / title / f"{self.subject.name}.yaml", measurement.options
        )
        unfinished = file.with_name(f"{file.name}.part")

        def finish() -> None:
            unfinished.replace(file)

        self._finish = finish
        return ["recipes.evaluate", "--config", str(options), "--out", str(unfinished)]

    def _look_no_more(self, code: int) -> None:
        """A program has ended."""
        program = self._program
        assert program is not None
        self.end()
        if code == 0:
            self._finish()
        elif not self._asked:
            self.failure = f"{self.subject.name} ({self._doing})"
            said = "\n".join(f"    {line}" for line in program.last_words().splitlines())
            self._progress.note(
                f"{self.subject.name}: {self._doing} failed with code {code}; the end of {program.log}:\n{said}"
            )

    def _look(self) -> None:
        """Show the last step of a run, where there is a new one."""
        run = self.subject.run
        now = time.monotonic()
        if run is None or self._doing != "training" or now - self._looked < LOOK_S:
            return
        self._looked = now
        last = _last_row(run.folder / METRICS)
        if last is None:
            return
        stage, step = str(last.get("stage")), int(last.get("stage_step") or 0)
        if (stage, step) == self._shown:
            return
        totals = {one.name: one.steps for one in run.config.stages}
        if run.config.sft is not None:
            totals["sft"] = run.config.sft.steps
        if run.config.stopping is not None:
            totals["stopping"] = run.config.stopping.steps
        if stage != self._shown[0]:
            self._progress.start(f"{run.name} {stage}", totals.get(stage, step), max(step - 1, 0))
        self._shown = (stage, step)
        numbers = {key: value for key, value in last.items() if isinstance(value, int | float)}
        self._progress.update(step, numbers)


def _written(path: Path, options: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(yaml.safe_dump(options, sort_keys=False, allow_unicode=True).encode())
    return path


def _last_row(path: Path) -> dict[str, Any] | None:
    found = [row for _, row in rows(path) if row is not None]
    return found[-1] if found else None

"""Progress: plain lines at the right times, an ETA that one slow step does not spoil, a live line."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from mlx_sumrl.reporting import progress as progress_module
from mlx_sumrl.reporting.progress import (
    LiveProgress,
    NotebookProgress,
    Pace,
    PlainProgress,
    Progress,
    SilentProgress,
    duration,
    make_progress,
    summary,
)

METRICS = {"reward/mean": 0.5234, "loss": 0.1, "length/within": 0.613, "tokens_per_second": 1830.4}


class FakeClock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class TestPace:
    def test_median_of_the_steps_times_what_is_left(self) -> None:
        clock = FakeClock()
        pace = Pace(total=10, done=0, clock=clock)
        assert pace.seconds_left is None
        for done, seconds in enumerate([2.0, 50.0, 2.0, 4.0, 3.0], start=1):
            clock.now += seconds
            pace.advance(done)
        assert pace.seconds_left == 3.0 * 5  # sorted: 2 2 3 4 50

    def test_after_resuming_only_own_steps_count(self) -> None:
        clock = FakeClock()
        pace = Pace(total=100, done=90, clock=clock)
        clock.now += 2
        pace.advance(91)
        assert pace.seconds_left == 18

    def test_several_steps_between_two_updates(self) -> None:
        clock = FakeClock()
        pace = Pace(total=10, done=0, clock=clock)
        clock.now += 8
        pace.advance(4)
        assert pace.seconds_left == 12


def test_duration() -> None:
    assert [duration(seconds) for seconds in (0, 59.6, 190, 3790)] == ["0:00", "1:00", "3:10", "1:03:10"]


def test_summary_of_grpo_and_of_sft() -> None:
    clock = FakeClock()
    pace = Pace(2, 0, clock)
    assert summary(METRICS, pace) == "reward 0.523  within 61%  1,830 tokens/s"
    clock.now += 190
    pace.advance(1)
    assert summary({"loss": 2.5, "tokens_per_second": 10}, pace) == "loss 2.500  10 tokens/s  ETA 3:10"
    assert "within" not in summary({"length/within": float("nan")}, pace)


class TestPlain:
    def run(self, seconds_per_step: float, steps: int, every_steps: int | None = None) -> list[str]:
        clock, file = FakeClock(), io.StringIO()
        with PlainProgress(file, every_seconds=10, every_steps=every_steps, clock=clock) as progress:
            progress.start("length", steps)
            for step in range(1, steps + 1):
                clock.now += seconds_per_step
                progress.update(step, METRICS)
        return file.getvalue().splitlines()

    def test_first_last_and_every_ten_seconds(self) -> None:
        shown = [line.split("step ")[1].split("/")[0] for line in self.run(seconds_per_step=4, steps=9)]
        assert shown == ["1", "4", "7", "9"]  # at 4, 16, 28 and 36 seconds

    def test_every_so_many_steps(self) -> None:
        shown = [line.split("step ")[1].split("/")[0] for line in self.run(0.1, 7, every_steps=3)]
        assert shown == ["1", "3", "6", "7"]

    def test_the_line(self) -> None:
        assert self.run(5, 3)[0] == "length  step 1/3  reward 0.523  within 61%  1,830 tokens/s  ETA 0:10"

    def test_who_samples_comes_last(self) -> None:
        file = io.StringIO()
        with PlainProgress(file, clock=FakeClock()) as progress:
            progress.start("length", 2)
            progress.update(1, {"loss": 0.5}, "mini-1 v3 830/s 4 asked  mini-2 away 0/s 0 asked 2 failed")
        assert file.getvalue().endswith(
            "  ETA 0:00  | mini-1 v3 830/s 4 asked  mini-2 away 0/s 0 asked 2 failed\n"
        )

    def test_the_last_step_is_shown_when_a_stage_ends_early(self) -> None:
        clock, file = FakeClock(), io.StringIO()
        progress = PlainProgress(file, clock=clock)
        progress.start("a", 100)
        for step in (1, 2, 3):
            progress.update(step, {})
        progress.finish()
        progress.finish()
        assert file.getvalue() == "a  step 1/100  ETA 0:00\na  step 3/100  ETA 0:00\n"

    def test_lines_are_flushed(self) -> None:
        class Flushed(io.StringIO):
            flushes = 0

            def flush(self) -> None:
                self.flushes += 1

        file = Flushed()
        PlainProgress(file).note("saved [bold]")
        assert file.getvalue() == "saved [bold]\n"
        assert file.flushes == 1


def test_live_shows_title_count_and_numbers() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=110)
    with LiveProgress(console) as progress:
        progress.start("stage [a]", 5, done=1)
        progress.update(2, METRICS)
        progress.note("saved [b]")
        progress.start("second", 3)
        progress.update(3, METRICS)
    out = file.getvalue()
    for part in (
        "stage [a]",
        "2/5",
        "reward 0.523  within 61%  1,830 tokens/s  ETA",
        "saved [b]",
        "second",
        "3/3",
    ):
        assert part in out
    assert out.rstrip().endswith("\x1b[?25h"), "the cursor is given back"


def test_live_gives_the_terminal_back_when_training_fails() -> None:
    file = io.StringIO()

    def train() -> None:
        with LiveProgress(Console(file=file, force_terminal=True)) as progress:
            progress.start("a", 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert "\x1b[?25h" in file.getvalue()


def test_silent_and_every_kind_is_a_progress(capsys: pytest.CaptureFixture[str]) -> None:
    kinds: list[Progress] = [
        SilentProgress(),
        PlainProgress(io.StringIO()),
        LiveProgress(Console(file=io.StringIO())),
    ]
    for progress in kinds:
        with progress:
            progress.start("a", 2)
            progress.update(1, METRICS)
            progress.note("n")
    assert capsys.readouterr().out == ""


class TestMake:
    def test_plain_where_there_is_no_terminal(self) -> None:
        assert isinstance(make_progress(io.StringIO()), PlainProgress)

    def test_live_on_a_terminal_but_a_dumb_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.setenv("TERM", "xterm")
        assert isinstance(make_progress(Terminal()), LiveProgress)
        monkeypatch.setenv("TERM", "dumb")
        assert isinstance(make_progress(Terminal()), PlainProgress)

    def test_in_a_notebook(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Console, "is_jupyter", True, raising=False)
        monkeypatch.setattr(progress_module, "Console", lambda file: type("C", (), {"is_jupyter": True})())
        monkeypatch.setitem(sys.modules, "ipywidgets", None)
        monkeypatch.setattr(progress_module.importlib.util, "find_spec", lambda name: None)
        assert isinstance(make_progress(), NotebookProgress)


def test_a_notebook_writes_over_its_line() -> None:
    """In a real kernel: one display, and updates of it."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    code = (
        "from mlx_sumrl.reporting.progress import make_progress, NotebookProgress\n"
        "with make_progress() as progress:\n"
        "    assert isinstance(progress, NotebookProgress), type(progress)\n"
        "    progress.start('length', 3)\n"
        "    for step in (1, 2, 3):\n"
        "        progress.update(step, {'reward/mean': step})\n"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    assert len(outputs) == 1
    assert outputs[0]["data"]["text/plain"].startswith("length  step 3/3  reward 3.000")

"""What a run shows while it works: one live line on a terminal or in a notebook, plain lines elsewhere.

Never imports mlx.
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import IO, Any, Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

Clock = Callable[[], float]
STEPS_REMEMBERED = 20


class Progress(Protocol):
    """Told how a run goes; a context manager, at whose end nothing is left open."""

    def start(self, title: str, total: int, done: int = 0) -> None:
        """A stage of ``total`` steps begins, ``done`` of them behind it."""
        ...

    def update(self, step: int, metrics: Mapping[str, float], status: str = "") -> None:
        """``step`` steps of the stage are done; the metrics are those of the last. ``status``: who samples, and how."""
        ...

    def note(self, text: str) -> None:
        """Something to say between the steps."""
        ...

    def finish(self) -> None:
        """The stage is over; may be called again."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class Pace:
    """Time that is left, from the median of the last steps: one slow step (a save) moves it little."""

    def __init__(self, total: int, done: int, clock: Clock = time.monotonic) -> None:
        self.total = total
        self.done = done
        self._clock = clock
        self._last = clock()
        self._seconds: deque[float] = deque(maxlen=STEPS_REMEMBERED)

    def advance(self, done: int) -> None:
        """``done`` steps are behind."""
        now = self._clock()
        if done > self.done:
            self._seconds.append((now - self._last) / (done - self.done))
        self.done, self._last = done, now

    @property
    def seconds_left(self) -> float | None:
        """None before the first step."""
        if not self._seconds:
            return None
        return statistics.median(self._seconds) * max(self.total - self.done, 0)


def summary(metrics: Mapping[str, float], pace: Pace, status: str = "") -> str:
    """The numbers worth watching, as ``reward 0.52  within 61%  1,830 tokens/s  ETA 3:10``; then the status."""
    parts = []
    for name, label in (("reward/mean", "reward {:.3f}"), ("loss", "loss {:.3f}")):
        if name in metrics:
            parts.append(label.format(metrics[name]))
            break  # the loss of GRPO says little; SFT has nothing else
    if "length/within" in metrics and math.isfinite(metrics["length/within"]):
        parts.append(f"within {metrics['length/within']:.0%}")
    if "tokens_per_second" in metrics:
        parts.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
    if pace.seconds_left is not None:
        parts.append(f"ETA {duration(pace.seconds_left)}")
    if status:
        parts.append(f"| {status}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """``3:10`` or ``1:03:10``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Closing:
    """`finish` at the end of a ``with`` block."""

    def finish(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.finish()


class SilentProgress(_Closing):
    """Says nothing."""

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Nothing."""

    def update(self, step: int, metrics: Mapping[str, float], status: str = "") -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


class PlainProgress(_Closing):
    """A line now and then, for logs: the first step, the last, and one every ``every_seconds`` between."""

    def __init__(
        self,
        file: IO[str] | None = None,
        *,
        every_seconds: float = 10.0,
        every_steps: int | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._file = file
        self._every_seconds = every_seconds
        self._every_steps = every_steps
        self._clock = clock
        self._title = ""
        self._pace = Pace(0, 0, clock)
        self._written = -math.inf
        self._waiting = ""

    def start(self, title: str, total: int, done: int = 0) -> None:
        """A stage begins."""
        self.finish()
        self._title = title
        self._pace = Pace(total, done, self._clock)
        self._written = -math.inf

    def update(self, step: int, metrics: Mapping[str, float], status: str = "") -> None:
        """A line, when it is time for one."""
        self._pace.advance(step)
        told = summary(metrics, self._pace, status)
        self._waiting = f"{self._title}  step {step}/{self._pace.total}  {told}".rstrip()
        due = self._clock() - self._written >= self._every_seconds
        if due or step >= self._pace.total or (self._every_steps and step % self._every_steps == 0):
            self._write_status()

    def note(self, text: str) -> None:
        """A line of its own."""
        self._print(text)

    def finish(self) -> None:
        """The last step's line, if it was not written yet."""
        if self._waiting:
            self._write_status()

    def _write_status(self) -> None:
        self._print(self._waiting)
        self._waiting = ""
        self._written = self._clock()

    def _print(self, text: str) -> None:
        # sys.stdout is looked up each time: notebooks and tests put their own there.
        print(text, file=self._file or sys.stdout, flush=True)


class NotebookProgress(PlainProgress):
    """One line in a notebook's cell that is written over, without the widgets that rich needs."""

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        super().__init__(every_seconds=0.5, clock=clock)
        self._handle: Any = None

    def start(self, title: str, total: int, done: int = 0) -> None:
        """A stage begins, on a line of its own."""
        super().start(title, total, done)
        self._handle = None

    def _write_status(self) -> None:
        from IPython.display import display

        content = {"text/plain": self._waiting}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(content, raw=True)
        self._waiting = ""
        self._written = self._clock()


class LiveProgress(_Closing):
    """One live line per stage; those of finished stages stay above it."""

    def __init__(self, console: Console | None = None, *, clock: Clock = time.monotonic) -> None:
        self._console = console or Console()
        self._clock = clock
        self._rich: RichProgress | None = None
        self._task = TaskID(0)
        self._pace = Pace(0, 0, clock)

    def start(self, title: str, total: int, done: int = 0) -> None:
        """A stage begins, on a line of its own."""
        self.finish()
        self._pace = Pace(total, done, self._clock)
        self._rich = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[summary]}"),
            console=self._console,
        )
        self._task = self._rich.add_task(escape(title), total=total, completed=done, summary="")
        self._rich.start()

    def update(self, step: int, metrics: Mapping[str, float], status: str = "") -> None:
        """Moves the line on."""
        self._pace.advance(step)
        if self._rich is not None:
            self._rich.update(self._task, completed=step, summary=summary(metrics, self._pace, status))

    def note(self, text: str) -> None:
        """A line above the live one."""
        self._console.print(text, markup=False, highlight=False)

    def finish(self) -> None:
        """Leaves the stage's line as it stands."""
        if self._rich is not None:
            self._rich.stop()
            self._rich = None


def make_progress(file: IO[str] | None = None) -> Progress:
    """The kind that fits where the output goes: ``file``, or the process's stdout."""
    console = Console(file=file)
    if console.is_jupyter:
        return LiveProgress(console) if importlib.util.find_spec("ipywidgets") else NotebookProgress()
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveProgress(console)
    return PlainProgress(file)

"""What asking shows while it works: one live line on a terminal, plain lines elsewhere. Never imports mlx."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

from mlx_sumrl.endpoint.asking import Asked
from mlx_sumrl.endpoint.ledger import Ledger, Spent
from mlx_sumrl.reporting.progress import duration


def line(asked: Asked, spent: Spent, seconds: float) -> str:
    """``1,204,310 tokens  cost 0.41  3.1 answers/s  2 failed  5 tried again  ETA 3:10``, for people."""
    parts = [f"{spent.tokens:,} tokens"]
    if spent.cost:
        parts.append(f"cost {spent.cost:.4g}")
    if asked.answered and seconds > 0:
        rate = asked.answered / seconds
        parts.append(f"{rate:.1f} answers/s" if rate >= 1 else f"{60 * rate:.1f} answers/min")
    if asked.failed:
        parts.append(f"{asked.failed.total()} failed")
    if asked.attempts_failed:
        parts.append(f"{asked.attempts_failed.total()} tried again")
    left = asked.total - asked.done - asked.failed.total()
    if asked.answered and left > 0:
        parts.append(f"ETA {duration(left * seconds / asked.answered)}")
    return "  ".join(parts)


def spent_line(ledger: Ledger) -> str:
    """What the ledger's answers took, and what may have been billed besides."""
    spent, uncertain = ledger.spent, ledger.uncertain
    text = f"spent: {spent.prompt_tokens:,} prompt and {spent.completion_tokens:,} completion tokens"
    if spent.cost:
        text += f", cost {spent.cost:.4g}"
    if ledger.asks_without_outcome:
        asks = ledger.asks_without_outcome
        text += (
            f"; {asks:,} {'request' if asks == 1 else 'requests'} ended without an answer and may have been billed: at "
            f"most {uncertain.tokens:,} tokens"
        )
        text += f", cost {uncertain.cost:.4g}" if uncertain.cost else ""
    return text


class AskingProgress:
    """Told how a run goes; a context manager."""

    def __init__(
        self, console: Console, *, every_seconds: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._every_seconds = every_seconds
        self._clock = clock
        self._begun = self._written = self._round_begun = clock()
        self._asked: Asked | None = None
        self._rich: RichProgress | None = None
        self._task = TaskID(0)

    def show(self, asked: Asked, spent: Spent) -> None:
        """A question is over; another `asked` is another round of questions, with a rate of its own."""
        if asked is not self._asked:
            self._asked, self._begun = asked, self._round_begun
        text = line(asked, spent, self._clock() - self._begun)
        over = asked.done + asked.failed.total()
        if self._rich is not None:
            self._rich.update(self._task, total=asked.total, completed=over, summary=text)
        elif over >= asked.total or self._clock() - self._written >= self._every_seconds:
            self._written = self._clock()
            self.note(f"{over}/{asked.total}  {text}")
        if over >= asked.total:
            self._round_begun = self._clock()

    def note(self, text: str) -> None:
        """A line of its own."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.fields[summary]}"))
            self._rich = RichProgress(*columns, console=self._console)
            self._task = self._rich.add_task("asking", total=None, summary="")
            self._rich.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._rich is not None:
            self._rich.stop()
            self._rich = None

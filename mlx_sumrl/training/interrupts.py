"""Ctrl-C between steps: the step in progress is finished, a checkpoint written, and only then the run ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether someone asked to stop."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def finish_step_on_interrupt(tell: Callable[[str], None]) -> Iterator[StopRequest]:
    """Inside, a first Ctrl-C (or SIGTERM) is noted and told; a second one interrupts at once, as usual."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        if request.asked:
            raise KeyboardInterrupt
        request.asked = True
        tell("stopping after this step; once more stops at once, back to the last checkpoint")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

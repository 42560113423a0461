"""Ctrl-C while a server is asked: the first waits for what is under way, the second does not. Never imports mlx."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mlx_sumrl.endpoint.asking import Stop

INTERRUPTED = "it was interrupted"
"""Why a run stopped."""
T = TypeVar("T")


async def until_interrupted(run: Callable[[Stop], Awaitable[T]], note: Callable[[str], None]) -> T:
    """What ``run`` gives; a first SIGINT or SIGTERM asks its `Stop`, a second one cancels it.

    Raises:
        KeyboardInterrupt: it was cancelled.
    """
    stop = Stop()
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    interrupts = itertools.count(1)

    def interrupt() -> None:
        if next(interrupts) > 1:
            task.cancel()
            return
        stop.ask(INTERRUPTED)
        note("stopping: answers under way are waited for; once more stops at once")

    # Signals belong to the main thread; elsewhere there is nothing to set.
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
    try:
        return await run(stop)
    except asyncio.CancelledError:
        note("what was under way is given up; answers that came are kept: the same command goes on")
        raise KeyboardInterrupt from None

"""`OwnThread`: what may not run in two threads at a time, and may take too long. Never imports mlx.

Invariant: what is handed over is done in that order, each alone; nobody waits longer than asked for. A thread cannot
be ended: one that is stuck is left behind, and does not keep the process from its end.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class OwnThread(Generic[T]):
    """One thread, started by the first thing to do."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: queue.SimpleQueue[tuple[Callable[[], T], Future[T]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Do this after all that was handed over before; the future has what it returns or raises."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        future: Future[T] = Future()
        self._work.put((work, future))
        return future

    def close(self) -> None:
        """End the thread once it has done what it is at; does not wait for it."""
        self._work.put(None)

    def _run(self) -> None:
        while (one := self._work.get()) is not None:
            work, future = one
            if not future.set_running_or_notify_cancel():
                continue
            try:
                answer = work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(answer)
            del one, work, future  # or the last groups live on until the next come

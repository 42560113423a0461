"""Where requests are held while an engine takes in other weights.

Invariant: while the gate is closed, nobody is inside; a request is inside from before its first token is asked for
until its answer is checked. So weights are only ever changed when no request is being answered, and an answer's
version is the one that was active when its request came in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class AbortedError(Exception):
    """A running request was cut off, since it took longer than an activation waits."""


class Gate:
    """Open, or closed by one who changes weights."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._inside: set[asyncio.Task[object]] = set()
        self._cut_off: set[asyncio.Task[object]] = set()
        self.waiting = 0
        """Requests held."""

    @property
    def running(self) -> int:
        """Requests being answered."""
        return len(self._inside)

    @asynccontextmanager
    async def passage(self) -> AsyncIterator[None]:
        """Inside while the block runs, in a task of this request's own. Raises `AbortedError` when it is cut off."""
        self.waiting += 1
        try:
            while not self._open.is_set():  # it may have been closed again before this task's turn
                await self._open.wait()
        finally:
            self.waiting -= 1
        task = asyncio.current_task()
        assert task is not None
        assert task not in self._inside
        self._inside.add(task)
        self._empty.clear()
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._cut_off:
                raise
            task.uncancel()
            raise AbortedError from None
        finally:
            self._inside.discard(task)
            self._cut_off.discard(task)
            if not self._inside:
                self._empty.set()

    @asynccontextmanager
    async def closed(self, abort_after_s: float) -> AsyncIterator[int]:
        """Hold new requests and wait for the running ones; yields how many were cut off after ``abort_after_s``."""
        if not self._open.is_set():
            raise RuntimeError("the gate is closed already; activations come one after the other")
        self._open.clear()
        try:
            yield await self._emptied(abort_after_s)
        finally:
            self._open.set()

    async def _emptied(self, abort_after_s: float) -> int:
        try:
            await asyncio.wait_for(self._empty.wait(), abort_after_s)
            return 0
        except TimeoutError:
            late = set(self._inside)
        self._cut_off |= late
        for task in late:
            task.cancel()
        await self._empty.wait()
        return len(late)

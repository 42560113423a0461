"""The order of things that come over several connections: nothing is early and nothing is late.

A trainer asks for the next version's groups right behind its activation, so that an engine goes from one version to the
next without a word from the network in between; and what is sent on two connections arrives in any order.

Invariant: a request that comes before the version it is for waits here, for as long as that one is being activated or
`GRACE_S` for it to begin; and an activation waits here, as long, for requests that were sent before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

GRACE_S = 1.0
"""Nothing overtakes by more than this."""
REMEMBERED = 1 << 16
"""Requests; far more than are under way at once."""


class Anteroom:
    """Of one worker."""

    def __init__(self, active: Callable[[], int]) -> None:
        """``active`` is the version that is sampled from now."""
        self.waiting = 0
        """Requests here."""
        self._active = active
        self._coming: int | None = None
        self._seen: dict[str, None] = {}
        self._news = asyncio.Event()

    def has_come(self, request_id: str) -> None:
        """A request is here."""
        self._seen[request_id] = None
        if len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]
        self._tell()

    async def all_have_come(self, request_ids: Collection[str]) -> None:
        """Returns when all of them are, or were, here; or are taken to be lost."""
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE_S):
                while not all(one in self._seen for one in request_ids):
                    await self._news.wait()

    @contextmanager
    def activating(self, version: int) -> Iterator[None]:
        """While the block runs, this version is on its way."""
        self._coming = version
        self._tell()
        try:
            yield
        finally:
            self._coming = None
            self._tell()

    async def ready_for(self, version: int) -> None:
        """Returns when the version is active, or when it is not going to be."""
        self.waiting += 1
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(GRACE_S):
                    while version not in (self._active(), self._coming):
                        await self._news.wait()
            while self._coming == version:
                await self._news.wait()
        finally:
            self.waiting -= 1

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

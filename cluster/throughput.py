"""`Throughput`: how fast one worker has been, and when it would be done with more.

Invariant: speed is tokens that were delivered over the time in which any were asked for, recent ones weighing more;
a worker that has not delivered yet is taken to be as fast as the others are on average.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

HALF_LIFE_S = 30.0
"""Busy seconds after which a measurement weighs half."""


class Throughput:
    """Speed and backlog of one worker. Times are seconds of any one clock; tokens are expected or delivered ones."""

    def __init__(self) -> None:
        self.in_flight = 0.0
        """Tokens asked for and not answered."""
        self._tokens = 0.0
        self._busy = 0.0
        self._since: float | None = None
        self._free_at = 0.0

    @property
    def measured(self) -> float | None:
        """Tokens a second, or None before the first answer."""
        return self._tokens / self._busy if self._tokens > 0 and self._busy > 0 else None

    def asked(self, now: float, tokens: float, speed: float) -> float:
        """So many tokens more are asked for; when they should be here, at this speed."""
        if self._since is None:
            self._since = now
        self.in_flight += tokens
        self._free_at = max(now, self._free_at) + tokens / speed
        return self._free_at

    def answered(self, now: float, tokens: float, delivered: float, speed: float) -> None:
        """What was asked as ``tokens`` has ended with ``delivered`` of them: 0 after a failure."""
        self._count(now)
        self._tokens += delivered
        self.in_flight = max(self.in_flight - tokens, 0.0)
        if self.in_flight < 1e-6:
            self.in_flight, self._since = 0.0, None
        self._free_at = now + self.in_flight / (self.measured or speed)

    def withdrawn(self, now: float, tokens: float, speed: float) -> None:
        """What was asked is no longer wanted: neither the worker's merit nor its fault."""
        before = self._tokens, self._busy
        self.answered(now, tokens, 0.0, speed)
        self._tokens, self._busy = before

    def finish_at(self, now: float, more: float, speed: float) -> float:
        """When ``more`` tokens on top of what is in flight would be done."""
        return max(now, self._free_at) + more / speed

    def _count(self, now: float) -> None:
        if self._since is None:
            return
        busy = max(now - self._since, 0.0)
        kept = 0.5 ** (busy / HALF_LIFE_S)
        self._tokens, self._busy = self._tokens * kept, self._busy * kept + busy
        self._since = now


def speeds_of(workers: Sequence[Throughput], guess: float = 100.0) -> list[float]:
    """Tokens a second of each; the mean of those measured stands in for the others, ``guess`` where there is none."""
    known = [speed for one in workers if (speed := one.measured) is not None]
    standing_in = sum(known) / len(known) if known else guess
    return [standing_in if (speed := one.measured) is None else speed for one in workers]


def shares(finish: Sequence[float], speeds: Sequence[float], tokens: Sequence[float]) -> list[int]:
    """For each piece of work its worker: the one expected to be done with it first, the earlier in the list if equal.

    ``finish``: when each worker is done with what it has. ``tokens``: the pieces, in order.
    """
    heap = [
        (end + tokens[0] / speed, place)
        for place, (end, speed) in enumerate(zip(finish, speeds, strict=True))
    ]
    heapq.heapify(heap)
    ends = list(finish)
    chosen = []
    for number, size in enumerate(tokens):
        _, place = heap[0]
        chosen.append(place)
        ends[place] += size / speeds[place]
        following = tokens[number + 1] if number + 1 < len(tokens) else size
        # Of pieces that differ in size the heap knows the end with the next one only where it was touched last:
        # near enough, since the groups of one batch are all expected to be alike.
        heapq.heapreplace(heap, (ends[place] + following / speeds[place], place))
    return chosen

"""What a member with nothing to do may take over from others: pure choices, nothing is moved here.

Invariant: only work that it would probably be done with before the one that has it, and of which there is no second
copy yet; so a place is asked for twice at most at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.member import Batch, Flight, Member
from cluster.throughput import speeds_of

OVERDUE = 2.0
"""A request that takes so many times as long as all of its worker's should is one of which nothing is known."""
WORTH_IT = 0.5
"""A second copy is asked for where it takes at most this share of the time that the first one still needs. Without it
(and with each request's own due time) two real engines on one machine were asked for 47 copies of 112 groups."""


def thefts(
    thief: Member, members: Sequence[Member], batch: Batch, tokens: float, now: float
) -> list[tuple[Member, int]]:
    """Places of ``batch`` that others have planned and not begun, each with the member that has it.

    ``tokens`` are those expected of a group. The member furthest behind gives first, its last places first.
    """
    if thief.version is None or thief.version < batch.floor:
        return []
    speeds = dict(zip(members, speeds_of([one.throughput for one in members]), strict=True))
    queued = {
        one: [place for owner, place in one.queue if owner is batch] for one in members if one is not thief
    }
    ends = {
        one: _end_of(one, len(places) * tokens, speeds[one], now) for one, places in queued.items() if places
    }
    own = thief.throughput.finish_at(now, len(thief.queue) * tokens, speeds[thief])
    taken = []
    while ends:
        victim = max(ends, key=lambda one: ends[one])
        own += tokens / speeds[thief]
        if own >= ends[victim]:
            break
        taken.append((victim, queued[victim].pop()))
        ends[victim] -= tokens / speeds[victim]
        if not queued[victim]:
            del ends[victim]
    return taken


def _end_of(member: Member, tokens: float, speed: float, now: float) -> float:
    """A closed gate is taken to stay closed for as long again as it has been."""
    closed = 0.0 if member.open else now - member.closed_at
    return closed + member.throughput.finish_at(now, tokens, speed)


def hedges(idle: Member, members: Sequence[Member], batch: Batch, tokens: float, now: float) -> list[int]:
    """Places of ``batch`` in flight elsewhere that ``idle`` should be asked for as well, in order.

    The latest first, and only this member's part of them where others are idle too.
    """
    if idle.version is None or idle.version < batch.floor:
        return []
    (speed,) = [
        speed
        for one, speed in zip(members, speeds_of([one.throughput for one in members]), strict=True)
        if one is idle
    ]
    idlers = sum(one.open and not one.flights for one in members)
    late = []
    for place, flights in batch.flights.items():
        if len(flights) == 1 and place not in batch.delivery.done and flights[0].member is not idle:
            late.append((_expected(flights[0], now), place))
    late.sort(reverse=True)
    end, taken = now, []
    for expected, place in late[: -(-len(late) // max(idlers, 1))]:
        end += tokens / speed
        if end - now > WORTH_IT * (expected - now):
            break
        taken.append(place)
    return sorted(taken)


def _expected(flight: Flight, now: float) -> float:
    # An engine that samples side by side ends with the first request hardly before the last.
    due = max(one.due for one in flight.member.flights)
    if now > flight.started + OVERDUE * (due - flight.started):
        return float("inf")
    return max(due, now)

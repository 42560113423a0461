"""The gate: nobody is inside while weights change."""

from __future__ import annotations

import asyncio

import pytest

from cluster.gate import AbortedError, Gate


async def inside(gate: Gate, leave: asyncio.Event, log: list[str], name: str) -> None:
    async with gate.passage():
        log.append(f"{name} in")
        await leave.wait()
        log.append(f"{name} out")


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_change_waits_for_those_inside_and_holds_those_who_come() -> None:
    async def scene() -> list[str]:
        gate, leave, log = Gate(), asyncio.Event(), list[str]()
        first = asyncio.create_task(inside(gate, leave, log, "first"))
        await settled()

        async def change() -> None:
            async with gate.closed(1000) as aborted:
                assert gate.running == 0
                log.append(f"change, {aborted} aborted, {gate.waiting} waiting")
                await settled()
                log.append("changed")

        changing = asyncio.create_task(change())
        await settled()
        second = asyncio.create_task(inside(gate, leave, log, "second"))
        await settled()
        assert (gate.running, gate.waiting) == (1, 1)
        leave.set()
        await asyncio.gather(first, changing, second)
        return log

    assert asyncio.run(scene()) == [
        *("first in", "first out"),
        *("change, 0 aborted, 1 waiting", "changed"),
        *("second in", "second out"),
    ]


def test_those_who_take_too_long_are_cut_off_and_counted() -> None:
    async def scene() -> None:
        gate, never, log = Gate(), asyncio.Event(), list[str]()
        late = [asyncio.create_task(inside(gate, never, log, str(one))) for one in range(3)]
        await settled()
        async with gate.closed(0) as aborted:
            assert aborted == 3
            assert gate.running == 0
        for task in late:
            with pytest.raises(AbortedError):
                await task

    asyncio.run(scene())


def test_one_who_hangs_up_is_no_abort() -> None:
    async def scene() -> None:
        gate, never = Gate(), asyncio.Event()
        inner = asyncio.create_task(inside(gate, never, [], "x"))
        await settled()
        inner.cancel()
        with pytest.raises(asyncio.CancelledError):
            await inner
        assert gate.running == 0
        async with gate.closed(1000) as aborted:
            assert aborted == 0
            held = asyncio.create_task(inside(gate, never, [], "y"))
            await settled()
            held.cancel()
            await asyncio.gather(held, return_exceptions=True)
            assert gate.waiting == 0

    asyncio.run(scene())


def test_a_change_that_fails_opens_the_gate_again() -> None:
    async def scene() -> None:
        gate, leave = Gate(), asyncio.Event()
        leave.set()
        with pytest.raises(ValueError, match="weights"):
            async with gate.closed(0):
                raise ValueError("weights")
        await inside(gate, leave, [], "x")

    asyncio.run(scene())

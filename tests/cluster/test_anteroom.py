"""Who is early waits, who is late is waited for, and neither for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from cluster import anteroom
from cluster.anteroom import Anteroom


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def play(scene: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scene

    asyncio.run(bounded())


def test_the_early_wait_until_their_version_is_active() -> None:
    async def scene() -> None:
        active = 3
        room = Anteroom(lambda: active)
        early = asyncio.create_task(room.ready_for(4))
        await settled()
        assert room.waiting == 1
        with room.activating(4):
            await settled()
            assert not early.done()
            active = 4
        await early
        assert room.waiting == 0
        await room.ready_for(4)  # at once

    play(scene())


def test_an_activation_that_fails_lets_the_early_go() -> None:
    async def scene() -> None:
        room = Anteroom(lambda: 3)
        early = asyncio.create_task(room.ready_for(4))
        await settled()

        async def fails() -> None:
            with room.activating(4):
                await settled()
                raise ValueError("weights")

        with pytest.raises(ValueError, match="weights"):
            await fails()
        await early  # and is then told that version 3 is active

    play(scene())


def test_nobody_waits_for_what_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anteroom, "GRACE_S", 0.05)

    async def scene() -> None:
        room = Anteroom(lambda: 3)
        await room.ready_for(4)
        await room.all_have_come(["never"])
        assert room.waiting == 0

    play(scene())


def test_an_activation_of_another_version_is_none_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anteroom, "GRACE_S", 0.05)

    async def scene() -> None:
        room = Anteroom(lambda: 3)
        with room.activating(5):
            await room.ready_for(4)

    play(scene())


def test_the_late_are_waited_for() -> None:
    async def scene() -> None:
        room = Anteroom(lambda: 3)
        room.has_come("a")
        await room.all_have_come(["a"])
        waiting = asyncio.create_task(room.all_have_come(["a", "b", "c"]))
        room.has_come("c")
        await settled()
        assert not waiting.done()
        room.has_come("b")
        await waiting

    play(scene())


def test_one_who_hangs_up_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        room = Anteroom(lambda: 3)
        early = asyncio.create_task(room.ready_for(4))
        await settled()
        early.cancel()
        await asyncio.gather(early, return_exceptions=True)
        assert room.waiting == 0

    play(scene())


def test_no_more_is_remembered_than_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anteroom, "REMEMBERED", 3)
    monkeypatch.setattr(anteroom, "GRACE_S", 0.05)

    async def scene() -> None:
        room = Anteroom(lambda: 3)
        for name in "abcde":
            room.has_come(name)
        assert list(room._seen) == ["c", "d", "e"]

    play(scene())

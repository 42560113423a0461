"""The ledger: torn by a crash at any byte it loses nothing that was on disk, and never says too little."""

from __future__ import annotations

import asyncio
import json
import resource
from pathlib import Path
from typing import Any

import pytest

from mlx_sumrl.endpoint.ledger import Ledger, Spent
from mlx_sumrl.errors import UserError

IDENTITY = {"model": "m", "temperature": 0.0}


def answer(key: str, prompt: int = 7, completion: int = 3) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "counted_by": "server"}
    return {"key": key, "document": f"of {key}", "text": "t", "usage": usage, "cost": 0.5}


async def fill(ledger: Ledger, keys: list[str]) -> None:
    async def one(key: str) -> None:
        await ledger.answer(await ledger.ask(key, f"row {key}", Spent(20, 10, 1.0), (20, 10)), answer(key))

    await asyncio.gather(*(one(key) for key in keys))


def filled(path: Path, keys: list[str]) -> bytes:
    with Ledger.open(path, IDENTITY) as ledger:
        asyncio.run(fill(ledger, keys))
    return path.read_bytes()


def test_cut_wherever_a_crash_may(tmp_path: Path) -> None:
    """What a crash may leave is a beginning of the file: every whole line of it counts, and it can be gone on with."""
    path = tmp_path / "ledger.jsonl"
    whole = filled(path, ["a", "b"])
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    near = {end + off for end in ends for off in (-2, -1, 0, 1, 2)} & set(range(len(whole) + 1))
    for length in sorted(near | set(range(0, len(whole), 17))):
        path.write_bytes(whole[:length])
        lines = [json.loads(line) for line in whole[:length].split(b"\n")[:-1]]
        answered = {one["key"] for one in lines if one["kind"] == "answer"}
        asked = {one["ask"] for one in lines if one["kind"] == "asked"}
        with Ledger.open(path, IDENTITY) as ledger:
            assert set(ledger.answers) == answered
            n = len(answered)
            assert ledger.spent == Spent(7 * n, 3 * n, 0.5 * n)
            assert ledger.asks_without_outcome == len(asked) - n
            assert ledger.uncertain == Spent(20 * (len(asked) - n), 10 * (len(asked) - n), len(asked) - n)
            asyncio.run(fill(ledger, ["c"]))
        with Ledger.open(path, IDENTITY) as ledger:
            assert set(ledger.answers) == answered | {"c"}


def test_lines_of_many_at_once_are_whole_and_each_there_once(tmp_path: Path) -> None:
    keys = [f"k{n}" for n in range(200)]
    lines = [json.loads(line) for line in filled(tmp_path / "ledger.jsonl", keys).splitlines()]
    assert [one["kind"] for one in lines].count("asked") == 200
    assert sorted(one["key"] for one in lines if one["kind"] == "answer") == sorted(keys)
    assert sorted(one["ask"] for one in lines if one["kind"] == "asked") == list(range(200))


def test_what_is_waited_for_is_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"

    async def look() -> None:
        with Ledger.open(path, IDENTITY) as ledger:
            number = await ledger.ask("a", "row", Spent(20, 10, 1.0), (20, 10))
            assert path.read_bytes().endswith(b"\n")
            assert b'"asked"' in path.read_bytes()
            await ledger.answer(number, answer("a"))
            assert b'"answer"' in path.read_bytes()

    asyncio.run(look())


def test_outcomes(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"

    async def attempts(ledger: Ledger) -> None:
        worst = Spent(20, 10, 1.0)
        ledger.release(await ledger.ask("a", "row", worst, (20, 10)), "status 429")
        ledger.lose(await ledger.ask("a", "row", worst, (20, 10)), "time-out")
        await ledger.ask("b", "row", worst, (20, 10))
        await ledger.fail("a", "row", "time-out", refused=False)
        # 5 tokens more than was held, of which 2 were held because a server had counted more before.
        await ledger.answer(await ledger.ask("c", "row", Spent(22, 10, 1.1), (20, 10)), answer("c", 27, 10))

    def check(ledger: Ledger) -> None:
        assert ledger.released == {"status 429": 1}
        assert ledger.lost == {"time-out": 1}
        assert ledger.asks_without_outcome == 2
        assert ledger.uncertain == Spent(40, 20, 2.0)
        assert set(ledger.failures) == {"a"}
        assert ledger.excess == (7, 0)

    with Ledger.open(path, IDENTITY) as ledger:
        asyncio.run(attempts(ledger))
        check(ledger)
    with Ledger.open(path, IDENTITY) as ledger:
        check(ledger)
        asyncio.run(fill(ledger, ["a"]))
        assert not ledger.failures


def test_refused_for_good_once_the_server_has_answered_another(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"

    async def refusals(ledger: Ledger) -> None:
        await ledger.fail("z", "row", "status 400", refused=True)
        await ledger.plan_for({})  # another run begins
        await ledger.fail("a", "row", "status 400", refused=True)
        await ledger.fail("b", "row", "time-out", refused=False)
        assert ledger.refused == set()
        await fill(ledger, ["c"])
        await ledger.fail("d", "row", "status 400", refused=True)

    with Ledger.open(path, IDENTITY) as ledger:
        asyncio.run(refusals(ledger))
    with Ledger.open(path, IDENTITY) as ledger:
        assert ledger.refused == {"a"}
        assert set(ledger.failures) == {"a", "b", "d", "z"}
        asyncio.run(fill(ledger, ["a"]))
        assert ledger.refused == {"d"}


def test_other_options_are_refused_once_there_is_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger.open(path, {**IDENTITY, "model": "mistyped"}).close()
    filled(path, ["a"])
    before = path.read_bytes()
    with pytest.raises(UserError, match=r'with model "m", and now it is "n"; temperature differ too'):
        Ledger.open(path, {"model": "n", "temperature": 1.0})
    assert path.read_bytes() == before
    with Ledger.open(path, None) as ledger:
        assert ledger.identity == IDENTITY


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with (
        Ledger.open(path, IDENTITY),
        pytest.raises(UserError, match="another process writes to the ledger"),
    ):
        Ledger.open(path, IDENTITY)
    Ledger.open(path, IDENTITY).close()


def test_after_half_a_line_nothing_is_written(tmp_path: Path) -> None:
    """Room for ten bytes more, then for everything again: what follows half a line could not be read back."""
    path = tmp_path / "ledger.jsonl"
    whole = filled(path, ["a"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def ask(ledger: Ledger) -> None:
        await ledger.ask("b", "row", Spent(20, 10, 1.0), (20, 10))

    with Ledger.open(path, IDENTITY) as ledger:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, hard))
            with pytest.raises(UserError, match="cannot be written"):
                asyncio.run(ask(ledger))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        with pytest.raises(UserError, match="cannot be written"):
            asyncio.run(ask(ledger))
    assert path.read_bytes()[: len(whole)] == whole
    assert len(path.read_bytes()) == len(whole) + 10
    with Ledger.open(path, IDENTITY) as ledger:
        assert set(ledger.answers) == {"a"}
    assert path.read_bytes() == whole


def test_damage_in_the_middle_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = filled(path, ["a", "b"]).splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\0\0\0\0\n", *lines[2:]]))
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"line 3 of the ledger .* is damaged: remove that line"):
        Ledger.open(path, IDENTITY)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [b'{"kind": "asked", "ask": 1}\n', b'{"id": 1}\n', b'{"kind":"header","version":1}\n{"kind":"answer"}\n'],
)
def test_some_other_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is none of a ledger"):
        Ledger.open(path, IDENTITY)
    assert path.read_bytes() == content

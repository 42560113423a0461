"""The append-only record of what a model was asked, what it answered and what that cost. Never imports mlx.

Invariant: a request is sent only after an ``asked`` line for it is on disk, and an answer counts only once its own
line is. So at whatever moment the process dies, no answer on disk is asked for again, and what was spent is never
more than the file says: an ask whose outcome is not known counts at its worst case. Lines are only ever added;
a last one torn by a crash is cut off. One process at a time has the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from mlx_sumrl.errors import UserError
from mlx_sumrl.reporting.json_files import encoded

VERSION = 1


@dataclass(frozen=True, slots=True)
class Spent:
    """Tokens and money."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost + other.cost,
        )

    @property
    def tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


class Ledger:
    """One ledger file, locked for this process until `close` (or the end of a ``with`` block)."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.header: dict[str, Any] = {}
        self.plan: dict[str, Any] = {}
        """What the last run meant to ask, for the card."""
        self.answers: dict[str, dict[str, Any]] = {}
        """Key -> the line of its answer, in the order in which they came."""
        self.failures: dict[str, dict[str, Any]] = {}
        """Key -> the line of its last failure, for keys that have no answer."""
        self.refused: set[str] = set()
        """Keys that the server would not have, though it answered others later in that run: no use asking again."""
        self._refused_last: set[str] = set()
        self.released: Counter[str] = Counter()
        """Reason -> requests that failed and cost nothing."""
        self.lost: Counter[str] = Counter()
        """Reason -> requests that failed and may have been billed all the same."""
        self.spent = Spent()
        """What the answers cost."""
        self.excess = (0, 0)
        """Most prompt and completion tokens by which an answer went above what was held for it."""
        self._worst: dict[int, Spent] = {}
        self._base: dict[int, tuple[int, int]] = {}
        self._asks = 0
        self._descriptor = descriptor
        self._waiting: list[bytes] = []
        self._added = self._synced = 0
        self._failed: UserError | None = None
        """Why nothing can be written any more."""
        self._turn = asyncio.Lock()
        self._writing = threading.Lock()

    @classmethod
    def open(cls, path: Path, identity: Mapping[str, Any] | None) -> Self:
        """Read the ledger, or begin it; ``identity`` are the options that every answer in it was made with.

        ``identity`` None takes what is there. Raises `UserError` when another process has the file, it is damaged,
        it was begun with other options, or it should be there and is not.
        """
        if identity is None and not path.is_file():
            raise UserError(f"there is no ledger {path}: name the folder of an earlier run with --out")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(
                f"the ledger {path} cannot be opened ({error.strerror}): set --out elsewhere"
            ) from None
        ledger = cls(path, descriptor)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another process writes to the ledger {path}: wait for it, or choose another --out"
                ) from None
            ledger._read()
            if ledger.header:
                ledger._check(identity)
            elif identity is None:
                raise UserError(f"the ledger {path} is empty: run without --from_ledger first")
            if identity is not None and ledger.header.get("identity") != identity:
                ledger.header = {"kind": "header", "version": VERSION, "identity": identity, "started": now()}
                ledger._write(encoded(ledger.header))
                _sync_folder(path.parent)
        except BaseException:
            os.close(descriptor)
            raise
        return ledger

    @property
    def identity(self) -> dict[str, Any]:
        """The options that its answers were made with."""
        return dict(self.header["identity"])

    @property
    def uncertain(self) -> Spent:
        """The worst case of all asks whose answer never came: what they cost is not known."""
        return sum(self._worst.values(), Spent())

    @property
    def asks_without_outcome(self) -> int:
        """How many those are."""
        return len(self._worst)

    async def plan_for(self, plan: Mapping[str, Any]) -> None:
        """Note what this run means to ask."""
        await self._add({"kind": "plan", "time": now(), **plan})

    async def ask(self, key: str, row: str, worst: Spent, base: tuple[int, int]) -> int:
        """Note, on disk when this returns, that ``key`` is about to be asked for; returns the ask's number.

        ``worst`` is the most it should cost, ``base`` its tokens before anything was added for servers that
        count more.
        """
        ask = self._asks
        tokens = [worst.prompt_tokens, worst.completion_tokens]
        record = {"kind": "asked", "ask": ask, "key": key, "row": row}
        await self._add(record | {"worst": [*tokens, worst.cost], "base": [*base]})
        return ask

    async def answer(self, ask: int, record: Mapping[str, Any]) -> None:
        """Keep an answer; on disk when this returns. ``record`` holds key, usage and cost among others."""
        await self._add({"kind": "answer", "ask": ask, "time": now(), **record})

    def release(self, ask: int, why: str) -> None:
        """A request that surely cost nothing. On disk with the next line: until then it counts as lost."""
        self._take({"kind": "released", "ask": ask, "why": why}, write=True)

    def lose(self, ask: int, why: str) -> None:
        """A request that may have been billed though no answer came. It counts at its worst case."""
        self._take({"kind": "lost", "ask": ask, "why": why}, write=True)

    async def fail(self, key: str, row: str, why: str, *, refused: bool) -> None:
        """A row that is given up in this run. A later one asks for it again, unless the server ``refused`` it."""
        record = {"kind": "failed", "key": key, "row": row, "why": why, "refused": refused}
        await self._add(record | {"time": now()})

    def close(self) -> None:
        """Write what is waiting and give the file free; may be called again."""
        if self._descriptor < 0:
            return
        try:
            waiting, self._waiting = self._waiting, []
            if waiting and self._failed is None:
                self._write(b"".join(waiting))
        finally:
            with self._writing:  # a thread may still be at it
                os.close(self._descriptor)
                self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def _add(self, record: Mapping[str, Any]) -> None:
        """Take a line in and wait until it is on disk. Lines that come meanwhile share one sync."""
        self._take(record, write=True)
        number = self._added
        async with self._turn:
            if self._synced >= number:
                return
            batch, self._waiting = self._waiting, []
            last = self._added
            await asyncio.to_thread(self._write, b"".join(batch))
            self._synced = last

    def _take(self, record: Mapping[str, Any], *, write: bool) -> None:
        """Bring the account up to date with a line, read or new."""
        if write:
            self._waiting.append(encoded(record))
            self._added += 1
        kind = record["kind"]
        if kind == "header":
            self.header = dict(record)
        elif kind == "plan":
            self.plan = dict(record)
            self._refused_last = set()  # another run: what was wrong in the last one may have been mended
        elif kind == "asked":
            self._worst[record["ask"]] = Spent(*record["worst"])
            self._base[record["ask"]] = (record["base"][0], record["base"][1])
            self._asks = max(self._asks, record["ask"] + 1)
        elif kind == "answer":
            usage = record["usage"]
            spent = Spent(usage["prompt_tokens"], usage["completion_tokens"], record["cost"])
            self._worst.pop(record["ask"])
            prompt, completion = self._base.pop(record["ask"])
            self.spent += spent
            self.excess = (
                max(self.excess[0], spent.prompt_tokens - prompt),
                max(self.excess[1], spent.completion_tokens - completion),
            )
            self.answers.setdefault(record["key"], dict(record))
            self.failures.pop(record["key"], None)
            # An answer says that the server was well: what it refused before, it refused for the row's sake.
            self.refused = (self.refused | self._refused_last) - {record["key"]}
            self._refused_last = set()
        elif kind == "released":
            self._worst.pop(record["ask"], None)
            self.released[record["why"]] += 1
        elif kind == "lost":
            self.lost[record["why"]] += 1
        elif kind == "failed" and record["key"] not in self.answers:
            self.failures[record["key"]] = dict(record)
            if record["refused"]:
                self._refused_last.add(record["key"])

    def _write(self, content: bytes) -> None:
        with self._writing:
            if self._failed is not None:
                raise self._failed
            try:
                view = memoryview(content)
                while view:
                    view = view[os.write(self._descriptor, view) :]
                _sync(self._descriptor)
            except OSError as error:
                # Half a line may be there: nothing may follow it, nobody's line may count as written.
                self._failed = UserError(
                    f"the ledger {self.path} cannot be written ({error.strerror}): make room, then run the same "
                    "command again; the answers in it are kept"
                )
                raise self._failed from None

    def _read(self) -> None:
        good, damaged = 0, 0
        with open(self._descriptor, "rb", closefd=False) as file:
            for number, line in enumerate(file, start=1):
                record = None
                with contextlib.suppress(ValueError):
                    record = json.loads(line) if line.endswith(b"\n") else None
                if damaged and isinstance(record, dict):
                    raise UserError(
                        f"line {damaged} of the ledger {self.path} is damaged: remove that line, and what it "
                        "held is asked for again; or choose another --out"
                    )
                if not isinstance(record, dict):
                    damaged = damaged or number
                    continue
                try:
                    if number == 1 and record["kind"] != "header":
                        raise KeyError("kind")
                    self._take(record, write=False)
                except (KeyError, TypeError, IndexError):
                    raise UserError(
                        f"line {number} of {self.path} is none of a ledger: choose another --out, or remove the line"
                    ) from None
                good += len(line)
        if damaged:  # the line that a crash cut short; nothing was ever done on the strength of it
            os.truncate(self._descriptor, good)
            _sync(self._descriptor)

    def _check(self, identity: Mapping[str, Any] | None) -> None:
        if self.header.get("version") != VERSION:
            raise UserError(
                f"the ledger {self.path} has version {self.header.get('version')}, and this program writes "
                f"{VERSION}: choose another --out"
            )
        if identity is None or not self.answers:
            return  # a model's name that was mistyped, say: a second header takes the place of the first
        before = self.identity
        changed = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
        if changed:
            first = changed[0]
            others = f"; {', '.join(changed[1:])} differ too" if changed[1:] else ""
            raise UserError(
                f"the answers in {self.path} were asked for with {first} {_short(before.get(first))}, and now it "
                f"is {_short(identity.get(first))}{others}: give the options of before to go on, or another --out"
            )


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _sync(descriptor: int) -> None:
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if (
        full is not None
    ):  # on macOS, fsync leaves the bytes in the drive's own cache, which power loss empties
        with contextlib.suppress(OSError):  # some file systems do not know it
            fcntl.fcntl(descriptor, full)
            return
    os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

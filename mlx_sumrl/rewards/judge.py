"""A larger model's score as a reward, asked beside the training. Never imports mlx.

Invariant: a completion's value comes from well-formed replies about it, 0 where it says nothing, and is missing (NaN)
where no such reply came. What the ledger knows is not asked again. Requests are sent by one thread with an event
loop of its own, whichever thread wants a score.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mlx_sumrl.config import Criterion, JudgeRewardConfig
from mlx_sumrl.endpoint.asking import Stop
from mlx_sumrl.endpoint.ledger import Ledger
from mlx_sumrl.errors import UserError
from mlx_sumrl.judging.criteria import CRITERIA
from mlx_sumrl.judging.judge import LEDGER_IDENTITY, Found, Judge, judging_endpoint
from mlx_sumrl.judging.questions import Inquiry
from mlx_sumrl.judging.rows import JudgedText
from mlx_sumrl.judging.scores import inquiries, judged_rows
from mlx_sumrl.rewards.reward import group_shape
from mlx_sumrl.rollouts.types import Group

PREFIX = "judge."
"""Before its options' names in errors: they are below `judge` of a reward."""


class AskingThread:
    """A judge in a thread of its own; rewards with the same options share one, and so its ledger."""

    _running: ClassVar[dict[str, AskingThread]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, config: JudgeRewardConfig) -> None:
        self._config = config
        self._users = 0
        self._loop = asyncio.new_event_loop()
        self._waiting: list[tuple[Sequence[Inquiry], Future[Found]]] = []
        self._under_way: list[tuple[Sequence[Inquiry], Future[Found]]] = []
        self._wake = asyncio.Event()
        self._failed: Exception | None = None
        self._thread: threading.Thread | None = None

    @classmethod
    def shared(cls, config: JudgeRewardConfig) -> AskingThread:
        """The one for these options; `leave` it when done.

        Raises `UserError` when one with other options has the same ledger.
        """
        key = config.model_dump_json()
        with cls._lock:
            for other in cls._running.values():
                if (
                    key not in cls._running
                    and config.ledger is not None
                    and other._config.ledger == config.ledger
                ):
                    raise UserError(
                        f"two judges with other options have the same ledger {config.ledger}: name one for each"
                    )
            if key not in cls._running:
                cls._running[key] = cls(config)
            one = cls._running[key]
            one._users += 1
            if one._thread is None:
                one._thread = threading.Thread(target=one._run, name="judge", daemon=True)
                one._thread.start()
            return one

    def ask(self, wanted: Sequence[Inquiry]) -> Future[Found]:
        """Ask what is not known yet. The future raises what `Judge.ask` does."""
        future: Future[Found] = Future()
        self._loop.call_soon_threadsafe(self._take, wanted, future)
        return future

    def leave(self) -> None:
        """The last to leave ends it; requests under way are given up."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            self._running.pop(self._config.model_dump_json(), None)
        assert self._thread is not None
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(self._loop)])
        self._thread.join()

    def _take(self, wanted: Sequence[Inquiry], future: Future[Found]) -> None:
        if self._failed is not None:
            future.set_exception(self._failed)
            return
        self._waiting.append((wanted, future))
        self._wake.set()

    def _run(self) -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._work())
        finally:
            for _, future in self._under_way + self._waiting:
                if not future.done():
                    future.set_exception(UserError("the judge was left before it had answered"))
            self._loop.close()

    async def _work(self) -> None:
        """Batch after batch; after an error each later one gets the same."""
        try:
            with contextlib.ExitStack() as stack:
                path = self._config.ledger
                if path is None:
                    path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "ledger.jsonl"
                ledger = stack.enter_context(Ledger.open(path, LEDGER_IDENTITY))
                async with judging_endpoint(self._config, PREFIX) as endpoint:
                    await ledger.plan_for({})
                    judge = Judge(self._config, endpoint, ledger, Stop())
                    while True:
                        await self._next(judge)
        except Exception as error:
            for _, future in self._under_way + self._waiting:
                if not future.done():
                    future.set_exception(error)
            self._failed = error
            await asyncio.Event().wait()  # until the last one leaves

    async def _next(self, judge: Judge) -> None:
        await self._wake.wait()
        self._wake.clear()
        self._under_way, self._waiting = self._waiting, []
        found = await judge.ask([one for wanted, _ in self._under_way for one in wanted])
        for _, future in self._under_way:
            future.set_result(found)


class JudgeReward:
    """One criterion's score in [0, 1], or the composite of all four, divided by 4.

    `begin` asks about a group while others are still sampled; calling it waits for the replies.
    """

    def __init__(
        self, name: str, criterion: Criterion | Literal["composite"], config: JudgeRewardConfig
    ) -> None:
        """Raises `UserError` for a URL that is none, or a key that is not there; nothing is asked yet."""
        self.name = name
        self._criterion = criterion
        self._config = config
        self._host = judging_endpoint(config, PREFIX).host
        self._thread: AskingThread | None = None

    def begin(self, group: Group) -> None:
        """Ask about a group; `__call__` will want the replies. From any thread, without waiting."""
        self._ask([group])

    def __call__(self, groups: Sequence[Group]) -> NDArray[np.float64]:
        """Shape [P, G], values in [0, 1]; 0 for an empty completion, NaN for one that could not be judged.

        Raises:
            UserError: a cap is reached, or the server can answer nothing.
        """
        shape = group_shape(groups)
        found = self._ask(groups).result()
        if found.stopped is not None:
            raise UserError(
                f"reward {self.name!r} cannot go on asking {self._host}: {found.stopped}; mend that, or leave the "
                "reward out"
            )
        texts = _texts(groups)
        rows = judged_rows(texts, found, self._config)
        values = []
        for text, row in zip(texts, rows, strict=True):
            score = row.score(self._criterion) if self._criterion != "composite" else _mean(row.composite)
            # A policy must not escape its judge by saying nothing.
            values.append(0.0 if not text.summary.strip() else math.nan if score is None else score)
        return np.asarray(values, dtype=np.float64).reshape(shape)

    def close(self) -> None:
        """Give up what is under way; may be called again."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.leave()

    def _ask(self, groups: Sequence[Group]) -> Future[Found]:
        if self._thread is None:
            self._thread = AskingThread.shared(self._config)
        wanted = inquiries(_texts(groups), self._config)
        if self._criterion != "composite":
            wanted = [one for one in wanted if one.asks in (self._criterion, "all")]
        return self._thread.ask(wanted)


def _texts(groups: Sequence[Group]) -> list[JudgedText]:
    """One for each completion; one that is empty is not asked about."""
    return [
        JudgedText(
            group.example.id,
            group.example.document,
            completion.text,
            None if completion.text.strip() else "no summary",
        )
        for group in groups
        for completion in group.completions
    ]


def _mean(composite: float | None) -> float | None:
    return None if composite is None else composite / len(CRITERIA)

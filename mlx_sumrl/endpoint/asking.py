"""Asks every open question, many at once, and keeps each answer the moment it comes. Never imports mlx.

Invariant: each question that has no answer in the ledger ends a run in one of three ways: answered, failed for a
counted reason, or still open because the run was stopped. The first question is asked alone, so that a wrong
address, key or model costs one request. No request is sent before its worst case is reserved and noted.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from mlx_sumrl.config import AskingConfig
from mlx_sumrl.endpoint.budget import Budget, CapReachedError, Held
from mlx_sumrl.endpoint.client import Endpoint, FailedAttemptError, Message, RefusedRowError, Reply
from mlx_sumrl.endpoint.ledger import Ledger, Spent
from mlx_sumrl.errors import UserError


class Question(Protocol):
    """One answer that is wanted."""

    @property
    def key(self) -> str:
        """What its answer is kept under."""
        ...

    @property
    def row(self) -> str:
        """Where it comes from, for people."""
        ...


QuestionT = TypeVar("QuestionT", bound=Question)
AnyQuestion = TypeVar("AnyQuestion", bound=Question, contravariant=True)


class Wording(Protocol[AnyQuestion]):
    """How questions are put, and what is kept of them beside their answers."""

    def messages(self, question: AnyQuestion) -> list[Message]:
        """What is sent."""
        ...

    def record(self, question: AnyQuestion, reply: Reply) -> Mapping[str, Any]:
        """What the ledger keeps beside key, text, usage and cost."""
        ...


@dataclass(slots=True)
class Asked:
    """How a run goes."""

    total: int
    """Questions, those that the ledger answers already among them, without `refused_before`."""
    done: int
    """Answered, now or before."""
    refused_before: int = 0
    """Questions that an earlier run found refused, and that are not asked again."""
    answered: int = 0
    """Answered in this run."""
    failed: Counter[str] = field(default_factory=Counter)
    """Reason -> questions given up in this run."""
    attempts_failed: Counter[str] = field(default_factory=Counter)
    """Reason -> requests that were, or will be, sent again."""
    stopped: str | None = None
    """Why questions are left open; None when none is."""


class Stop:
    """Set by Ctrl-C or by a cap: nothing more is sent, what is under way is waited for."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.why = ""

    def ask(self, why: str) -> None:
        """The first reason stays."""
        self.why = self.why or why
        self.event.set()

    async def pause(self, seconds: float) -> None:
        """Wait, unless it is time to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self.event.wait()
        except TimeoutError:
            pass


class Asking(Generic[QuestionT]):
    """One run over the questions, or several one after the other."""

    def __init__(
        self,
        config: AskingConfig,
        endpoint: Endpoint,
        ledger: Ledger,
        wording: Wording[QuestionT],
        stop: Stop,
        show: Callable[[Asked, Spent], None] = lambda asked, spent: None,
        tell: Callable[[str], None] = lambda text: None,
        pause: Callable[[float], Awaitable[None]] | None = None,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`show` is told after each question, `tell` has something to say before the first; `pause` waits, in
        seconds of `clock`; `jitter` draws from [0, 1).
        """
        self._config = config
        self._endpoint = endpoint
        self._ledger = ledger
        self._wording = wording
        self._stop = stop
        self._show = show
        self._tell = tell
        self._pause = pause or stop.pause
        self._jitter = jitter
        self._clock = clock
        self._budget = Budget(config, ledger.spent + ledger.uncertain, ledger.excess)
        self._not_before = clock()
        """Time on the clock before which nobody sends, since the server asked for quiet."""
        self._failed_in_a_row = 0
        self._detail = ""
        """The server's words on the last row that was given up."""
        self._failed_before: set[str] = set()
        self._reached = False
        """Whether the server has answered anything yet."""

    async def run(self, questions: Sequence[QuestionT]) -> Asked:
        """Ask what is open.

        Raises:
            UserError: what no other question would fare better with. Answers that were under way are kept.
        """
        answered = self._ledger.answers
        refused = set() if self._config.retry.refused else self._ledger.refused - set(answered)
        wanted = [one for one in questions if one.key not in refused]
        done = sum(one.key in answered for one in wanted)
        self.asked = Asked(len(wanted), done, len(questions) - len(wanted))
        # Those that failed before come last: they say least about the server.
        self._failed_before = set(self._ledger.failures)
        open_questions = [one for one in wanted if one.key not in answered]
        waiting = iter(sorted(open_questions, key=lambda one: one.key in self._failed_before))
        # Alone until one is answered: what is wrong with the address, the key or the model shows here.
        for question in waiting:
            await self._settle(question)
            if self._reached or self._stop.event.is_set():
                break
        workers = [asyncio.create_task(self._work(waiting)) for _ in range(self._config.concurrency)]
        try:
            await asyncio.gather(*workers)
        except UserError as error:
            self._stop.ask(str(error))
            await asyncio.gather(*workers, return_exceptions=True)  # what is under way is paid for
            raise
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        if self.asked.failed and not self._ledger.answers and not self._stop.event.is_set():
            reasons = ", ".join(f"{n} x {why}" for why, n in self.asked.failed.most_common())
            raise UserError(
                f"{self._endpoint.host} has answered none of {self.asked.total} questions: "
                f"{_with_detail(reasons, self._detail)}; mend that, then run the same command again"
            )
        if self._stop.event.is_set() and self.asked.done + self.asked.failed.total() < self.asked.total:
            self.asked.stopped = self._stop.why
        return self.asked

    async def _work(self, waiting: Iterator[QuestionT]) -> None:
        for question in waiting:
            if self._stop.event.is_set():
                return
            await self._settle(question)

    async def _settle(self, question: QuestionT) -> None:
        """Ask until it is answered, given up, or the run stops."""
        try:
            answered = await self._attempts(question)
        except CapReachedError as error:
            self._stop.ask(str(error))
            return
        except RefusedRowError as error:
            await self._give_up(question, str(error), error.detail, refused=True)
        except FailedAttemptError as error:
            if not self._reached and question.key not in self._failed_before:
                raise UserError(
                    f"{self._endpoint.host} has answered nothing in {self._config.retry.attempts} attempts: "
                    f"{_with_detail(str(error), error.detail)}; mend that, or correct "
                    f"{self._endpoint.named}, then run the same command again"
                ) from None
            await self._give_up(question, str(error), error.detail, refused=False)
        else:
            if not answered:
                return
            self._failed_in_a_row = 0
            self.asked.answered += 1
            self.asked.done += 1
        self._show(self.asked, self._ledger.spent)

    async def _give_up(self, question: QuestionT, why: str, detail: str, *, refused: bool) -> None:
        self.asked.failed[why] += 1
        self._detail = detail or self._detail
        self._failed_in_a_row += 1
        await self._ledger.fail(question.key, question.row, why, refused=refused)
        if self._failed_in_a_row >= self._config.retry.failures_in_a_row:
            raise UserError(
                f"{self._failed_in_a_row} rows in a row failed at {self._endpoint.host}, the last for "
                f"{_with_detail(why, detail)}: mend that, or raise "
                f"{self._endpoint.option('retry.failures_in_a_row')}, then run the same command again; "
                "answers that came are kept"
            )

    async def _attempts(self, question: QuestionT) -> bool:
        """Whether it was answered; False: the run stops. Raises what the last attempt failed for."""
        messages = self._wording.messages(question)
        size = sum(len(one["content"].encode("utf-8", "replace")) for one in messages)
        for attempt in range(1, self._config.retry.attempts + 1):
            while (quiet := self._not_before - self._clock()) > 0 and not self._stop.event.is_set():
                await self._pause(quiet)
            if self._stop.event.is_set():
                return False
            held = await self._budget.reserve(size)
            actual = Spent()
            try:
                if self._stop.event.is_set():
                    return False
                actual = held.worst  # from here on it may have been billed
                number = await self._ledger.ask(question.key, question.row, held.worst, held.base)
                try:
                    reply = await self._endpoint.complete(messages)
                except FailedAttemptError as error:
                    if error.billed:
                        self._ledger.lose(number, str(error))
                    else:
                        self._ledger.release(number, str(error))
                        actual = Spent()
                    self._see(error)
                    if attempt == self._config.retry.attempts:
                        raise
                    why = _with_detail(str(error), error.detail)
                    wait = waiting_time(self._config, attempt, error.retry_after, self._jitter())
                except (RefusedRowError, UserError) as error:
                    self._ledger.release(number, "refused" if isinstance(error, UserError) else str(error))
                    actual = Spent()
                    raise
                else:
                    self._reached = True
                    actual = await self._keep(question, number, reply, held)
                    return True
            finally:
                await self._budget.settle(held, actual)
            if not self._reached:
                self._tell(f"no answer yet: {why}; trying again in {wait:.1f} s, attempt {attempt + 1}")
            await self._pause(wait)
        raise AssertionError("the last attempt returns or raises")

    def _see(self, error: FailedAttemptError) -> None:
        """What a failed attempt means for all others."""
        self.asked.attempts_failed[str(error)] += 1
        if not self._reached and str(error) == "no connection":
            raise UserError(
                f"no server answers at {self._endpoint.host} ({error.detail}): start it, or correct "
                f"{self._endpoint.named}"
            )
        if error.retry_after is None:
            return
        if error.retry_after > self._config.retry.longest_retry_after_s:
            raise UserError(
                f"{self._endpoint.host} asks to come back in {error.retry_after:.0f} s ({error}): run the same command "
                f"again then, or raise {self._endpoint.option('retry.longest_retry_after_s')}; "
                "answers that came are kept"
            )
        self._not_before = max(self._not_before, self._clock() + error.retry_after)

    async def _keep(self, question: QuestionT, number: int, reply: Reply, held: Held) -> Spent:
        """Put an answer on disk; what it cost."""
        worst = held.worst
        prompt, completion = reply.usage or (worst.prompt_tokens, worst.completion_tokens)
        spent = Spent(prompt, completion, self._config.price.of(prompt, completion))
        await self._ledger.answer(
            number,
            {
                "key": question.key,
                "row": question.row,
                **self._wording.record(question, reply),
                "text": reply.text,
                "reasoning": reply.reasoning,
                "finish_reason": reply.finish_reason,
                "usage": {
                    "prompt_tokens": prompt,
                    "completion_tokens": completion,
                    "counted_by": "server" if reply.usage else "worst case",
                },
                "cost": spent.cost,
                "model": reply.model,
                "response_id": reply.response_id,
                "endpoint": self._endpoint.host,
            },
        )
        return spent


def waiting_time(config: AskingConfig, attempt: int, retry_after: float | None, jitter: float) -> float:
    """Seconds to wait after attempt number `attempt` (from 1) failed; `jitter` from [0, 1).

    Exponential back-off with full jitter (Brooker, "Exponential Backoff And Jitter", AWS 2015): a random part of a
    ceiling that doubles. After a `Retry-After` so much later than it, that not all come back in one moment.
    """
    ceiling = min(config.retry.first_wait_s * 2.0 ** (attempt - 1), config.retry.longest_wait_s)
    return (retry_after or 0.0) + ceiling * jitter


def _with_detail(why: str, detail: str) -> str:
    return f"{why} ({detail})" if detail else why

"""The loop over the questions, on a clock of its own: what is tried again, when, and when the run stops."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mlx_sumrl.config import DistillConfig
from mlx_sumrl.data.distillation.documents import Document
from mlx_sumrl.data.distillation.questions import Instructions, identity
from mlx_sumrl.endpoint.asking import Asked, Asking, Stop
from mlx_sumrl.endpoint.client import Endpoint
from mlx_sumrl.endpoint.ledger import Ledger
from mlx_sumrl.errors import UserError

from .simulated_teacher import MODEL, Script, SimulatedTeacher


class Clock:
    """Time passes only in `pause`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


class Run:
    """Some documents asked of a simulated teacher."""

    def __init__(self, folder: Path, script: Script, count: int = 6, **options: Any) -> None:
        self.clock = Clock()
        self.server = SimulatedTeacher(script)
        given = {
            "out": folder,
            "teacher": self.server.url,
            "model": MODEL,
            "source": ["a.jsonl"],
            "timeout_s": 30,
        }
        self.config = DistillConfig.model_validate({**given, **options})
        self.documents = [Document(f"d{n}", "a", f"a:{n}", f"text {n}", None, {}, n) for n in range(count)]
        self.stop: Stop | None = None

    def ask(self) -> Asked:
        async def run(ledger: Ledger) -> Asked:
            instructions = Instructions(self.config)
            self.stop = Stop()
            await ledger.plan_for({})
            async with Endpoint(self.config, self.server.url, named="teacher", environment={}) as teacher:
                asking = Asking(
                    self.config,
                    teacher,
                    ledger,
                    instructions,
                    self.stop,
                    pause=self.clock.pause,
                    jitter=lambda: 0.5,
                    clock=self.clock,
                )
                return await asking.run(instructions.questions(self.documents, self.config.answers))

        with self.server, Ledger.open(self.config.out / "ledger.jsonl", identity(self.config)) as ledger:
            try:
                return asyncio.run(run(ledger))
            finally:
                self.answers = [one["document"] for one in ledger.answers.values()]


def test_back_off_doubles_for_one_request(tmp_path: Path) -> None:
    """Half of 1, 2, 4 and 8 seconds; the first document is asked alone until it is answered."""
    run = Run(tmp_path, lambda number, document: "busy" if number <= 4 else "answer")
    asked = run.ask()
    assert run.clock.pauses == [0.5, 1, 2, 4]
    assert run.server.documents[:5] == ["text 0"] * 5
    assert sorted(run.answers) == [f"text {n}" for n in range(6)]
    assert (asked.done, asked.attempts_failed) == (6, {"status 429": 4})


class ClockOfTwo(Clock):
    """Time passes only while two wait: one that waits alone does not take the other along."""

    def __init__(self) -> None:
        super().__init__()
        self.both = asyncio.Barrier(2)

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        until = self.now + seconds
        async with asyncio.timeout(20):
            await self.both.wait()
        self.now = max(self.now, until)


def await_pause(clock: Clock) -> None:
    """Until one has been told to wait."""
    end = time.monotonic() + 15
    while not clock.pauses:
        assert time.monotonic() < end, "nobody was told to wait"
        time.sleep(0.005)


def test_retry_after_holds_for_everybody(tmp_path: Path) -> None:
    """The server asks one of two for 30 seconds of quiet: the other, too, sends nothing before they are over."""
    sent: list[float] = []
    run = Run(tmp_path, lambda number, document: "answer", count=12, concurrency=2)
    run.clock = ClockOfTwo()

    def script(number: int, document: str) -> str:
        sent.append(run.clock.now)
        if number == 5:  # the other's, perhaps sent before the 429 was read: answered only after that
            await_pause(run.clock)
        return "busy 30" if number == 4 else "answer"

    run.server.script = script
    assert run.ask().done == 12
    assert sent[:4] == [1000] * 4
    assert all(at >= 1030 for at in sent[5:])
    assert len(sent) == 13
    assert sorted(run.clock.pauses)[-1] == 30.5


def test_a_retry_after_of_hours_stops(tmp_path: Path) -> None:
    run = Run(tmp_path, lambda number, document: "busy 7200" if number == 3 else "answer", concurrency=1)
    with pytest.raises(UserError, match="asks to come back in 7200 s"):
        run.ask()
    assert run.clock.pauses == []
    assert len(run.server.documents) == 3


def test_a_row_that_never_works_is_given_up_and_asked_for_again_by_the_next_run(tmp_path: Path) -> None:
    def script(number: int, document: str) -> str:
        return "half" if document == "text 3" else "answer"

    run = Run(tmp_path, script, retry={"attempts": 3})
    asked = run.ask()
    assert (asked.done, asked.failed, asked.stopped) == (5, {"half or no JSON": 1}, None)
    assert run.server.documents.count("text 3") == 3
    again = Run(tmp_path, lambda number, document: "answer")
    assert again.ask().done == 6
    assert again.server.documents == ["text 3"]


def test_rows_that_are_refused_for_good_do_not_stop_the_next_run(tmp_path: Path) -> None:
    """Ten rows too long for the teacher among thirty: the same command again sends none of them."""

    def script(number: int, document: str) -> str:
        return "status 400" if int(document.removeprefix("text ")) % 3 == 1 else "answer"

    options: dict[str, Any] = {"count": 30, "concurrency": 1, "retry": {"failures_in_a_row": 5}}
    first = Run(tmp_path, script, **options).ask()
    assert (first.done, first.failed) == (20, {"status 400": 10})
    again = Run(tmp_path, script, **options)
    asked = again.ask()
    assert (asked.done, asked.refused_before, asked.failed, asked.stopped) == (20, 10, {}, None)
    assert again.server.documents == []
    mended = Run(tmp_path, lambda number, document: "answer", count=30, retry={"refused": True})
    assert mended.ask().done == 30
    assert len(mended.server.documents) == 10


def test_what_a_server_that_was_not_set_up_refused_is_asked_again(tmp_path: Path) -> None:
    refusing = Run(tmp_path, lambda number, document: "status 400", count=40, retry={"failures_in_a_row": 9})
    with pytest.raises(UserError, match="9 rows in a row failed"):
        refusing.ask()
    mended = Run(tmp_path, lambda number, document: "answer", count=40)
    asked = mended.ask()
    assert (asked.done, asked.refused_before) == (40, 0)


def test_a_row_that_breaks_the_server_comes_last_in_the_next_run(tmp_path: Path) -> None:
    def script(number: int, document: str) -> str:
        return "status 500" if document == "text 1" else "answer"

    retry = {"attempts": 2}
    assert Run(tmp_path, script, count=3, retry=retry).ask().failed == {"status 500": 1}
    again = Run(tmp_path, script, count=5, retry=retry, concurrency=1)
    assert again.ask().failed == {"status 500": 1}
    assert again.server.documents == ["text 3", "text 4", "text 1", "text 1"]
    alone = Run(tmp_path, script, count=5, retry=retry)
    assert alone.ask().failed == {"status 500": 1}  # and no word of a server that answers nothing


def test_a_server_that_never_answers_costs_the_attempts_of_one_question(tmp_path: Path) -> None:
    run = Run(tmp_path, lambda number, document: "status 500", retry={"attempts": 3})
    with pytest.raises(
        UserError, match=r"has answered nothing in 3 attempts: status 500 \(status 500, on purpose"
    ):
        run.ask()
    assert run.server.documents == ["text 0"] * 3


def test_when_all_of_a_few_are_refused_that_is_an_error(tmp_path: Path) -> None:
    run = Run(tmp_path, lambda number, document: "status 400", count=3)
    with pytest.raises(
        UserError, match=r"answered none of 3 questions: 3 x status 400 \(status 400, on purpose"
    ):
        run.ask()
    one_works = Run(tmp_path, lambda number, document: "answer" if number == 2 else "status 400", count=3)
    assert one_works.ask().failed == {"status 400": 2}
    # Now that there is an answer, a run that adds none still ends well: its dataset is written.
    again = Run(tmp_path, lambda number, document: "status 400", count=3).ask()
    assert (again.refused_before, again.failed) == (1, {"status 400": 1})


def test_a_refused_first_row_does_not_let_the_others_loose(tmp_path: Path) -> None:
    run = Run(tmp_path, lambda number, document: "status 400" if number == 1 else "status 401", concurrency=4)
    with pytest.raises(UserError, match="refuses the key"):
        run.ask()
    assert len(run.server.documents) == 2


def test_a_refused_row_is_not_sent_twice(tmp_path: Path) -> None:
    run = Run(tmp_path, lambda number, document: "status 400" if document == "text 0" else "answer")
    asked = run.ask()
    assert (asked.done, asked.failed) == (5, {"status 400": 1})
    assert run.server.documents.count("text 0") == 1


def test_failures_in_a_row_stop_and_one_success_starts_the_count_again(tmp_path: Path) -> None:
    def script(number: int, document: str) -> str:
        return "answer" if number in (1, 4) else "status 400"

    run = Run(tmp_path, script, count=30, concurrency=1, retry={"failures_in_a_row": 3})
    with pytest.raises(UserError, match="3 rows in a row failed"):
        run.ask()
    assert len(run.server.documents) == 7


def test_a_key_that_is_withdrawn_stops_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path, lambda number, document: "status 401" if number == 5 else "answer", concurrency=1)
    with pytest.raises(UserError, match="refuses the key"):
        run.ask()
    assert len(run.server.documents) == 5
    assert len(run.answers) == 4


def test_a_stop_leaves_open_what_waits(tmp_path: Path) -> None:
    run = Run(tmp_path, lambda number, document: "answer", concurrency=1)

    def script(number: int, document: str) -> str:
        if number == 3:
            assert run.stop is not None
            run.stop.ask("enough")
            return "status 500"
        return "answer"

    run.server.script = script
    asked = run.ask()
    assert (asked.done, asked.failed, asked.stopped) == (2, {}, "enough")


def test_no_more_at_once_than_said(tmp_path: Path) -> None:
    """Each request after the first is answered only once three are there: fewer would never end."""
    three = threading.Barrier(3)

    def script(number: int, document: str) -> str:
        if number > 1:
            three.wait(timeout=20)
        return "answer"

    run = Run(tmp_path, script, count=31, concurrency=3)
    assert run.ask().attempts_failed == {}
    assert run.server.most_under_way == 3


def test_wrong_usage_is_charged_at_the_worst_case(tmp_path: Path) -> None:
    script = ['usage {"prompt_tokens": 0, "completion_tokens": 9}', "usage null", "answer"]
    run = Run(tmp_path, lambda number, document: script[number - 1], count=3, concurrency=1, max_tokens=50)
    run.ask()
    with Ledger.open(tmp_path / "ledger.jsonl", None) as ledger:
        usages = [one["usage"] for one in ledger.answers.values()]
        counted = [one["counted_by"] for one in usages]
        assert counted == ["worst case", "worst case", "server"]
        assert [one["completion_tokens"] for one in usages] == [50, 50, 4]  # "In short: text N"

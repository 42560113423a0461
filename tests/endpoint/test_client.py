"""What is asked, what an answer says, and what each failure means."""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_sumrl.config import DistillConfig
from mlx_sumrl.endpoint.asking import waiting_time
from mlx_sumrl.endpoint.client import (
    Endpoint,
    FailedAttemptError,
    RefusedRowError,
    Reply,
    endpoint,
    read_reply,
    request_body,
    retry_after,
)
from mlx_sumrl.errors import UserError

from .simulated_teacher import KEY, MODEL, SimulatedTeacher

MESSAGES = [{"role": "user", "content": "Summarize.\n\nOne two three."}]


def config(url: str = "http://127.0.0.1:1", **changes: Any) -> DistillConfig:
    options = {"out": Path("out"), "teacher": url, "model": MODEL, "source": ["a.jsonl"], "timeout_s": 30}
    return DistillConfig.model_validate({**options, **changes})


def client(config: DistillConfig, environment: dict[str, str]) -> Endpoint:
    assert config.teacher is not None
    return Endpoint(config, config.teacher, named="teacher", environment=environment)


def complete(
    server: SimulatedTeacher, does: str, environment: dict[str, str] | None = None, **changes: Any
) -> Reply:
    server.script = lambda number, document: does

    async def run() -> Reply:
        async with client(config(server.url, **changes), environment or {}) as teacher:
            return await teacher.complete(MESSAGES)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://h:8080", "http://h:8080/v1/chat/completions"),
        ("http://h:8080/", "http://h:8080/v1/chat/completions"),
        ("https://h/v1", "https://h/v1/chat/completions"),
        ("https://h/v1/", "https://h/v1/chat/completions"),
        ("https://h/api/openai", "https://h/api/openai/v1/chat/completions"),
        ("https://h/v1beta", "https://h/v1beta/chat/completions"),
        ("https://h/x/chat/completions", "https://h/x/chat/completions"),
        (" https://h/v1?version=3 ", "https://h/v1/chat/completions?version=3"),
    ],
)
def test_endpoint(url: str, asked: str) -> None:
    assert str(endpoint(url, "--teacher")) == asked


@pytest.mark.parametrize("url", ["localhost:8080", "h", "", "ftp://h", "http://", "u:secret@h:80"])
def test_no_endpoint(url: str) -> None:
    with pytest.raises(UserError, match=r"^--teacher .* is no address") as error:
        endpoint(url, "--teacher")
    assert "secret" not in str(error.value)


def test_host_holds_no_credentials() -> None:
    teacher = client(config("https://user:secret@h.example:444/v1?key=secret"), {})
    assert teacher.host == "h.example:444"


def test_request_body() -> None:
    body = request_body(config(extra={"seed": 3}, temperature=0.5, max_tokens=9), MESSAGES)
    assert body == {"model": MODEL, "messages": MESSAGES, "seed": 3, "temperature": 0.5, "max_tokens": 9}
    body = request_body(
        config(temperature=None, top_p=0.9, max_tokens_field="max_completion_tokens"), MESSAGES
    )
    assert body == {"model": MODEL, "messages": MESSAGES, "top_p": 0.9, "max_completion_tokens": 512}


def test_retry_after() -> None:
    now = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
    assert retry_after("7", now) == 7
    assert retry_after("0.5", now) == 0.5
    assert retry_after("Thu, 01 Jan 2026 12:02:00 GMT", now) == 120
    assert retry_after("Thu, 01 Jan 2026 11:00:00 GMT", now) == 0
    assert retry_after("soon", now) is None
    assert retry_after(None, now) is None


def test_waiting_time() -> None:
    """Ceilings 1, 2, 4, 8, 10, 10 seconds; half of each at jitter one half; a Retry-After comes before."""
    options = config(retry={"first_wait_s": 1, "longest_wait_s": 10})
    assert [waiting_time(options, n, None, 0.5) for n in range(1, 7)] == [0.5, 1, 2, 4, 5, 5]
    assert waiting_time(options, 3, 30, 0.25) == 31
    assert waiting_time(options, 1000, None, 0.0) == 0


class TestReply:
    def body(self, **changes: Any) -> bytes:
        choice = {"message": {"content": " hi "}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 1}
        return json.dumps({"id": "x", "model": "m", "choices": [choice], "usage": usage, **changes}).encode()

    def test_whole(self) -> None:
        assert read_reply(self.body()) == Reply(" hi ", None, "stop", (5, 1), "m", "x")

    def test_parts_thoughts_and_nothing(self) -> None:
        parts = {
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            "reasoning_content": "r",
        }
        reply = read_reply(self.body(choices=[{"message": parts}]))
        assert (reply.text, reply.reasoning, reply.finish_reason) == ("ab", "r", None)
        assert read_reply(self.body(choices=[{"message": {"content": None}}])).text == ""

    @pytest.mark.parametrize(
        "usage",
        [
            *(None, "many", [], {}, {"prompt_tokens": 5}, {"prompt_tokens": "5", "completion_tokens": 1}),
            *({"prompt_tokens": True, "completion_tokens": 1}, {"prompt_tokens": 0, "completion_tokens": 1}),
            *({"prompt_tokens": 5, "completion_tokens": 0}, {"prompt_tokens": 5, "completion_tokens": -1}),
            {"prompt_tokens": 5.0, "completion_tokens": 1},
        ],
    )
    def test_usage_that_cannot_be(self, usage: Any) -> None:
        assert read_reply(self.body(usage=usage)).usage is None

    @settings(deadline=None)  # machines are shared
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["choices", "message", "content", "usage", "text"]), inner, max_size=3
                )
            ),
        )
    )
    def test_any_json_is_a_reply_or_a_value_error(self, content: Any) -> None:
        with contextlib.suppress(ValueError):
            assert isinstance(read_reply(json.dumps(content).encode()).text, str)


class TestFailures:
    @pytest.fixture
    def server(self) -> Any:
        with SimulatedTeacher() as server:
            yield server

    @pytest.mark.parametrize(
        ("does", "why", "billed", "after"),
        [
            ("busy", "status 429", False, None),
            ("busy 3", "status 429", False, 3),
            ("status 500", "status 500", False, None),
            ("status 503", "status 503", False, None),
            ("status 502", "status 502", True, None),
            ("status 504", "status 504", True, None),
            ("status 599", "status 599", True, None),
            ("half", "half or no JSON", True, None),
            ("cut", "connection broken", True, None),
        ],
    )
    def test_tried_again(
        self, does: str, why: str, billed: bool, after: float | None, server: SimulatedTeacher
    ) -> None:
        with pytest.raises(FailedAttemptError) as error:
            complete(server, does)
        assert (str(error.value), error.value.billed, error.value.retry_after) == (why, billed, after)

    def test_a_hang(self, server: SimulatedTeacher) -> None:
        with pytest.raises(FailedAttemptError) as error:
            complete(server, "hang", timeout_s=0.3)
        assert (str(error.value), error.value.billed) == ("time-out", True)

    def test_this_row_alone(self, server: SimulatedTeacher) -> None:
        for status in (400, 413, 422):
            with pytest.raises(RefusedRowError, match=f"status {status}"):
                complete(server, f"status {status}")

    @pytest.mark.parametrize("status", [401, 403, 402, 404, 405])
    def test_every_row(self, status: int, server: SimulatedTeacher) -> None:
        with pytest.raises(UserError, match="on purpose"):
            complete(server, f"status {status}")

    def test_a_key_is_in_no_message(self) -> None:
        """The server repeats what it was sent."""
        with SimulatedTeacher(key="another") as server, pytest.raises(UserError) as error:
            complete(server, "answer", {"NAME": KEY}, key_variable="NAME")
        assert KEY not in str(error.value)
        assert "Incorrect API key provided: Bearer …" in str(error.value)
        assert server.keys == [f"Bearer {KEY}"]

    def test_a_key_that_cannot_be_one(self) -> None:
        for key in ("", "  ", "two\nlines", "schlüssel"):
            with pytest.raises(UserError, match="environment variable NAME") as error:
                client(config(key_variable="NAME"), {"NAME": key})
            assert key not in str(error.value) or not key.strip()

    def test_the_key_in_place_of_its_name_is_not_shown(self) -> None:
        for key in (KEY, "0123456789abcdef0123456789abcdef"):
            with pytest.raises(UserError, match="is the name of an environment variable") as error:
                client(config(key_variable=key), {})
            assert key not in str(error.value)

    def test_no_key_goes_where_none_was_named(self, server: SimulatedTeacher) -> None:
        complete(server, "answer", {"OPENAI_API_KEY": KEY})
        assert server.keys == [None]

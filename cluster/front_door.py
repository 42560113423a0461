"""What every request passes before a route sees it: the token, the body's limits, the clock.

Invariant: nothing of a body is read without the token; a route never gets more bytes, nor waits longer for them, than
its limit. Whoever is refused gets one sentence and is hung up on, so a body that was not read is no way to hold a
connection. Plain ASGI: a body streams through, and nothing is kept of it here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from cluster.bearer import Bearer
from cluster.refusal import Refusal, not_valid, too_large
from cluster.wire import PREFIX, Problem

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BodyLimits:
    """Bytes and seconds."""

    json_bytes: int = 64 << 20
    """Of a JSON body."""
    idle_s: float = 20.0
    """Between two pieces of a body."""
    first_s: float = 30.0
    """For a body as a whole, on top of what `slowest` allows it."""
    slowest: float = 32 << 10
    """Bytes a second that a long body must come with."""
    drain_bytes: int = 1 << 20
    """Of the body of a refused request that are read and thrown away, so that its sender gets to see the answer."""
    drain_s: float = 2.0


class FrontDoor:
    """ASGI middleware around the routes."""

    def __init__(
        self,
        app: App,
        bearer: Bearer,
        limits: BodyLimits,
        answered: Callable[[str, int, float], None],
    ) -> None:
        self._app = app
        self._bearer = bearer
        self._limits = limits
        self._answered = answered

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websockets here
            return
        began = time.monotonic()
        body = _Body(receive, self._limits, json=not _is_file(scope), empty=not _has_body(scope))
        answer = _Answer(send, body)
        try:
            self._bearer.check(
                _header(scope, b"authorization"),
                _address(scope),
                _header(scope, b"host"),
                _header(scope, b"origin"),
            )
            body.check_length(content_length(scope))
            await self._app(scope, body.receive, answer.send)
        except Refusal as refusal:
            if not answer.begun:
                await answer.refuse(refusal)
        except Exception:
            log.exception("%s failed", scope["method"])
            if not answer.begun:
                await answer.refuse(Refusal(500, "the worker failed on this request; its log says why"))
        route = getattr(scope.get("route"), "path", "other")
        self._answered(route, answer.status, time.monotonic() - began)


class _Body:
    """A request's body as it comes, measured."""

    def __init__(self, receive: Receive, limits: BodyLimits, *, json: bool, empty: bool) -> None:
        self._receive = receive
        self._limits = limits
        self._most = limits.json_bytes if json else None  # files have the limits of their manifest
        self._bytes = 0
        self._began = time.monotonic()
        self.ended = empty

    def check_length(self, length: int | None) -> None:
        """Refuse what is announced to be too long before any of it is read."""
        if self._most is not None and length is not None and length > self._most:
            raise too_large(
                f"the body has {length} bytes and {self._most} are taken; send fewer prompts at once"
            )

    async def receive(self) -> Message:
        if self.ended:
            return await self._receive()  # what comes now is the client's leaving; it may take its time
        left = self._began + self._limits.first_s + self._bytes / self._limits.slowest - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(min(left, self._limits.idle_s), 0))
        except TimeoutError:
            raise Refusal(
                408, f"the body stopped coming after {self._bytes} bytes; send it faster, or in smaller files"
            ) from None
        if message["type"] == "http.disconnect":
            self.ended = True
            return message
        self._bytes += len(message.get("body", b""))
        self.ended = not message.get("more_body", False)
        if self._most is not None and self._bytes > self._most:
            raise too_large(f"the body has more than the {self._most} bytes that are taken")
        return message

    async def drain(self) -> None:
        """Throw away some of what is still coming; see `BodyLimits.drain_bytes`."""
        left, deadline = self._limits.drain_bytes, time.monotonic() + self._limits.drain_s
        while not self.ended and left > 0 and (wait_s := deadline - time.monotonic()) > 0:
            try:
                message = await asyncio.wait_for(self._receive(), wait_s)
            except TimeoutError:
                return
            left -= len(message.get("body", b""))
            self.ended = message["type"] == "http.disconnect" or not message.get("more_body", False)


class _Answer:
    """What is sent back; an answer to a body that was not read to its end closes the connection."""

    def __init__(self, send: Send, body: _Body) -> None:
        self._send = send
        self._body = body
        self.begun = False
        self.status = 500

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun, self.status = True, message["status"]
            if not self._body.ended:
                message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
            await self._send(message)
            return
        if self._body.ended or message.get("more_body", False):
            await self._send(message)
            return
        # All of the answer is on its way before the rest of the body is thrown away; then the connection ends.
        await self._send({**message, "more_body": True})
        await self._body.drain()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with a `Problem`."""
        content = problem(refusal.error)
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **(refusal.headers or {}),
        }
        await self.send(
            {
                "type": "http.response.start",
                "status": refusal.status,
                "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            }
        )
        await self.send({"type": "http.response.body", "body": content})


def problem(error: str) -> bytes:
    """A `Problem` as JSON; characters that no encoding has are written as escapes."""
    return Problem(error=error.encode("utf-8", "backslashreplace").decode()).model_dump_json().encode()


def content_length(scope: Message) -> int | None:
    """What the client says; None where it does not. Raises `Refusal` 422 for what is no length."""
    text = _header(scope, b"content-length")
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        raise not_valid("Content-Length is no number of bytes")
    return int(text)


def _has_body(scope: Message) -> bool:
    """Whether one is announced: a body has a length or comes in chunks."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0")
        for name, value in scope["headers"]
    )


def _is_file(scope: Message) -> bool:
    return scope["method"] == "PUT" and str(scope["path"]).startswith(f"{PREFIX}/weights/")


def _address(scope: Message) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _header(scope: Message, name: bytes) -> bytes | None:
    """A header that is there once."""
    values = [value for key, value in scope["headers"] if key == name]
    return values[0] if len(values) == 1 else None

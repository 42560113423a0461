"""As much of an HTTP server as simulated workers need: small enough for hundreds of them on one core.

A request at a time on a connection, bodies by Content-Length or in chunks; a client that goes away cancels what it
asked for, as a real server does; an answer may be cut short on purpose. Not for a network.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """One request."""

    method: str
    path: str
    bearer: str | None
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What is sent back."""

    status: int
    body: bytes
    cut_at: int | None = None
    """Send so many bytes of the body, and close; 0 sends nothing at all."""


Handler = Callable[[Request], Awaitable[Answer]]


class HttpServer:
    """One port of loopback."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    async def start(self, port: int = 0) -> str:
        """Listen; the URL."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self.handler, self._connections), "127.0.0.1", port
        )
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Close the port and cut all connections."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._connections):
            connection.cut()
        await asyncio.sleep(0)
        self._server = None


class _Connection(asyncio.Protocol):
    def __init__(self, handler: Handler, connections: set[_Connection]) -> None:
        self._handler, self._connections = handler, connections
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)
        if self._task is not None:
            self._task.cancel()

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._task is None:
            request = self._parsed()
            if request is not None:
                self._task = asyncio.ensure_future(self._answer(request))

    async def _answer(self, request: Request) -> None:
        try:
            answer = await self._handler(request)
        except Exception as error:  # to a client, a fault of the server is status 500
            answer = Answer(500, repr(error).encode())
        self._task = None
        assert self._transport is not None
        if answer.cut_at != 0:
            head = (
                f"HTTP/1.1 {answer.status} X\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(answer.body)}\r\n\r\n"
            )
            self._transport.write(head.encode() + answer.body[: answer.cut_at])
        if answer.cut_at is not None:
            self._transport.close()

    def _parsed(self) -> Request | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }
        start = end + 4
        if headers.get("transfer-encoding", "").lower() == "chunked":
            chunked = self._chunks(start)
            if chunked is None:
                return None
            body, stop = chunked
        else:
            stop = start + int(headers.get("content-length", "0"))
            if len(self._buffer) < stop:
                return None
            body = bytes(self._buffer[start:stop])
        del self._buffer[:stop]
        word = headers.get("authorization", "")
        bearer = word.removeprefix("Bearer ") if word.startswith("Bearer ") else None
        return Request(method, path, bearer, body)

    def _chunks(self, at: int) -> tuple[bytes, int] | None:
        body = bytearray()
        with contextlib.suppress(ValueError):
            while (line := self._buffer.index(b"\r\n", at)) >= 0:
                size = int(self._buffer[at:line], 16)
                stop = line + 2 + size + 2
                if len(self._buffer) < stop:
                    return None
                body += self._buffer[line + 2 : line + 2 + size]
                at = stop
                if size == 0:
                    return bytes(body), at
        return None

"""`Connections`: the way from an httpx client to one worker.

httpx's own pool looks at every connection it has for every request: with 64 requests under way that was three
fifths of what a group cost here (2.1 ms of CPU time; .8 with this). One worker is one origin, so a list of free ones is
all there is to know.

Invariant: a connection carries one request at a time, and is used again only after its reply was read to the end.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx


class Connections(httpx.AsyncBaseTransport):
    """All connections to one worker; as many as there are requests under way."""

    def __init__(self, url: str, context: ssl.SSLContext | None = None) -> None:
        """``context`` for https."""
        at = httpx.URL(url)
        port = at.port or (443 if at.scheme == "https" else 80)
        self._origin = httpcore.Origin(at.raw_scheme, at.raw_host, port)
        self._context = context
        self._free: list[httpcore.AsyncHTTPConnection] = []
        self._used: set[httpcore.AsyncHTTPConnection] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it on a connection that is free, or on a new one."""
        connection = await self._take()
        url = request.url
        raw = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        try:
            with _as_httpx_says():
                reply = await connection.handle_async_request(raw)
        except BaseException:
            await self.give_back(connection)
            raise
        return httpx.Response(
            status_code=reply.status,
            headers=reply.headers,
            stream=_Body(reply.stream, connection, self),
            extensions=reply.extensions,
        )

    async def give_back(self, connection: httpcore.AsyncHTTPConnection) -> None:
        """Keep it for the next request where it can take one, else close it."""
        self._used.discard(connection)
        if connection.is_idle():
            self._free.append(connection)
        else:
            await connection.aclose()

    async def aclose(self) -> None:
        """Close them all."""
        for connection in (*self._free, *self._used):
            await connection.aclose()
        self._free.clear()
        self._used.clear()

    async def _take(self) -> httpcore.AsyncHTTPConnection:
        while self._free:
            connection = self._free.pop()
            if connection.is_available() and not connection.has_expired():
                break
            await connection.aclose()
        else:
            connection = httpcore.AsyncHTTPConnection(
                self._origin, ssl_context=self._context, network_backend=httpcore.AnyIOBackend()
            )
        self._used.add(connection)
        return connection


class _Body(httpx.AsyncByteStream):
    def __init__(self, stream: Any, connection: httpcore.AsyncHTTPConnection, all_: Connections) -> None:
        self._stream, self._connection, self._all = stream, connection, all_

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx_says():
            async for part in self._stream:
                yield part

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            await self._all.give_back(self._connection)


@contextmanager
def _as_httpx_says() -> Iterator[None]:
    try:
        yield
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
        raise httpx.TransportError(str(error) or type(error).__name__) from error

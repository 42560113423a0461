"""uvicorn, with a limit on how long a client may take for a request's header.

Invariant: a connection that has not brought a whole header `HEADER_S` after it was made, or after its first byte
where it was kept, is closed. uvicorn itself waits for ever. Bodies are `cluster.front_door`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from cluster.front_door import problem

HEADER_S = 10.0
KEEP_ALIVE_S = 75
"""An idle connection is kept this long: longer than the trainer's client keeps it, so that it is the one to close."""
LONGEST_HEADER = 32 << 10
MOST_CONNECTIONS = 2048
log = logging.getLogger(__name__)


class TimedHeaders(H11Protocol):
    """HTTP/1.1 whose headers come in time."""

    header_s = HEADER_S

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # IDLE: what has come is no whole header yet. A pipelined one waits for its turn, and its timer with it.
        if self.conn.their_state is h11.IDLE:
            self._arm()
        else:
            self._disarm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, but a `Problem` like every other error."""
        body = problem("this is no HTTP request that can be read; see cluster/wire.py")
        headers = [
            *(("Content-Type", "application/json"), ("Content-Length", str(len(body)))),
            ("Connection", "close"),
        ]
        head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.header_s, self._too_slow)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        log.info("a connection brought no whole header within %.0f s and is closed", self.header_s)
        self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn's, which leaves signals to the worker: uvicorn would end the process before its engine has ended."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """End soon; the second time, at once."""
        self.force_exit, self.should_exit = self.should_exit, True


def make_server(app: Any, host: str, port: int, grace_s: float = 5.0) -> Server:
    """A server that logs no requests: what a client sends is nobody's to read later."""
    return Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http=TimedHeaders,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            proxy_headers=False,  # a client's address is the one it connects from, whatever it says
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(grace_s),
            h11_max_incomplete_event_size=LONGEST_HEADER,
            limit_concurrency=MOST_CONNECTIONS,
        )
    )

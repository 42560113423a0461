"""A TCP proxy that can cut, hold back or swallow what passes: a network that fails, before a real worker."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

Way = Literal["pass", "swallow", "cut", "delay"]


class Proxy:
    """Forwards a port of its own to a URL's; a context manager with a thread of its own.

    ``way``: `pass`; `swallow` (bytes go nowhere, connections stay open: a cable pulled); `cut` (connections are
    reset, new ones too); `delay` (by ``delay_s``). ``cut_after``: reset each connection after so many bytes of replies.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self.way: Way = "pass"
        self.delay_s = 0.05
        self.cut_after: int | None = None
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def set(self, way: Way) -> None:
        """From now on, for connections that are open too."""
        self.way = way
        if way == "cut":
            self._loop.call_soon_threadsafe(self._cut_all)

    def _cut_all(self) -> None:
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self._cut_all()
        tasks = [one for one in asyncio.all_tasks() if one is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.way == "cut":
            writer.transport.abort()
            return
        self._writers.add(writer)
        try:
            there_reader, there_writer = await asyncio.open_connection(
                self._target.hostname, self._target.port
            )
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(there_writer)
        with contextlib.suppress(OSError):
            await asyncio.gather(
                self._pass(reader, there_writer, None), self._pass(there_reader, writer, self.cut_after)
            )

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None
    ) -> None:
        passed = 0
        try:
            while data := await reader.read(1 << 16):
                if self.way == "swallow":
                    continue
                if self.way == "delay":
                    await asyncio.sleep(self.delay_s)
                if limit is not None and passed + len(data) > limit:
                    writer.write(data[: limit - passed])
                    await writer.drain()
                    break
                passed += len(data)
                writer.write(data)
                await writer.drain()
        finally:
            self._writers.discard(writer)
            writer.close()

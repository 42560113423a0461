"""Runs simulated workers: `SimulatedWorkers` in a thread, ``python -m benchmarks.simulated_workers`` in a process that
can be stopped or killed."""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from benchmarks.simulated_worker import Behaviour, SimulatedWorker
from benchmarks.small_http import HttpServer

T = TypeVar("T")


class SimulatedWorkers:
    """Workers in a thread of their own, each on a port of loopback; a context manager."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self.workers = [SimulatedWorker(one) for one in behaviours]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="simulated workers", daemon=True)
        self._servers = [HttpServer(worker.answer) for worker in self.workers]
        self.urls: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self.urls = [self.do(server.start()) for server in self._servers]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for server in self._servers:
            self.do(server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run this where the workers are."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def call(self, work: Callable[[], T]) -> T:
        """Call this where the workers are."""

        async def called() -> T:
            return work()

        return self.do(called())

    def down(self, place: int) -> None:
        """Take a worker off the network, its connections cut."""
        self.do(self._servers[place].stop())

    def up(self, place: int) -> None:
        """Bring it back on its old port, as a process that has just been started."""
        self.workers[place].restart()
        port = int(self.urls[place].rpartition(":")[2])
        self.do(self._servers[place].start(port))


def main(argv: list[str] | None = None, told: Callable[[str], None] | None = None) -> int:
    """Run workers until standard input ends; their URLs are printed in one line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulated_workers", description=str(__doc__))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds of a request")
    parser.add_argument("--speeds", type=float, nargs="*", help="tokens a second of each; no queue otherwise")
    parser.add_argument("--tokens", type=int, default=8, help="of a completion")
    parser.add_argument("--activate", type=float, default=0.0, help="seconds that a new version takes")
    parser.add_argument(
        "--batch", action="store_true", help="all prompts of a request at once, as the MLX engine"
    )
    parser.add_argument("--port", type=int, default=0, help="of the first one; any by default")
    asked = parser.parse_args(argv)

    async def serve() -> None:
        servers = []
        for place in range(asked.workers):
            behaviour = Behaviour(
                latency_s=asked.latency,
                tokens_per_second=asked.speeds[place] if asked.speeds else None,
                tokens=asked.tokens,
                activate_s=asked.activate,
                batch=asked.batch,
            )
            servers.append(HttpServer(SimulatedWorker(behaviour).answer))
        urls = [await one.start(asked.port + place if asked.port else 0) for place, one in enumerate(servers)]
        (told or print)(" ".join(urls))
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
        for server in servers:
            await server.stop()

    asyncio.run(serve())
    return 0


if __name__ == "__main__":
    sys.exit(main())

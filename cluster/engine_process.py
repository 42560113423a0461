"""One process of an engine, from its start to its end.

Invariant: while an `EngineProcess` is not stopped there is one keeper and one engine below it (`cluster.keeper`); once
`stop` has returned, or the worker has died, there is neither, nor any child of theirs in the engine's group. Its
port is on loopback and a new one for each process, so nothing meant for one process reaches the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster.engine_log import EngineLog
from cluster.engines.base import LOOPBACK

KEEPER = Path(__file__).with_name("keeper.py")
GRACE_S = 10.0
"""From the request to end to the SIGKILL."""
LINE = 1 << 16
"""Bytes read of the engine's output at once."""


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.bind((LOOPBACK, 0))
        return int(one.getsockname()[1])


class EngineProcess:
    """A running engine."""

    def __init__(
        self, keeper: asyncio.subprocess.Process, pid: int, reading: asyncio.Task[None], grace_s: float
    ) -> None:
        self.pid = pid
        """Of the engine itself, and of its process group."""
        self._keeper = keeper
        self._grace_s = grace_s
        self._reading = reading

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: EngineLog,
        grace_s: float = GRACE_S,
    ) -> EngineProcess:
        """Start ``command`` with what is added to the worker's environment.

        Raises OSError, with the reason in the log, where the program cannot be run.
        """
        # A pipe of its own: asyncio takes a process for running while a child of its child holds one of its pipes.
        output, input_ = os.pipe()
        try:
            reading = asyncio.create_task(_keep_output(output, log))
            keeper = await asyncio.create_subprocess_exec(
                # Isolated, and without site: no package of the engine's or the user's has a say, and it starts quickly.
                *(sys.executable, "-I", "-S", str(KEEPER), str(grace_s), *command),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=input_,
                start_new_session=True,  # Ctrl-C in a terminal is the worker's to answer
                env={**os.environ, **environment},
            )
        finally:
            os.close(input_)
        assert keeper.stdout is not None
        told = await keeper.stdout.readline()
        if not told.strip().isdigit():
            await keeper.wait()
            await reading
            raise OSError(log.last_words() or f"{command[0]} cannot be started")
        return cls(keeper, int(told), reading, grace_s)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._keeper.returncode is None

    async def ended(self) -> int:
        """Wait for its end; the exit code, 128 + signal when it was killed. Nothing of its group is left then."""
        code = await self._keeper.wait()
        if code < 0:  # killed itself, so it could not end the engine's children; the number is still theirs
            self._kill_group()
        # A process that left the group may hold the pipe open for ever. Two may wait here at once, and the first to
        # cancel the reading must not cancel the other: so the task is waited for, not its result.
        await asyncio.wait({self._reading}, timeout=2.0)
        self._reading.cancel()
        return code

    async def stop(self) -> None:
        """End it: asked first, killed after the grace."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        try:
            await asyncio.wait_for(self._keeper.wait(), self._grace_s + 5.0)
        except TimeoutError:
            self._keeper.kill()
        await self.ended()

    def _kill_group(self) -> None:
        """What the keeper could not end because it was killed itself."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


async def _keep_output(output: int, log: EngineLog) -> None:
    """Lines from the reading end of a pipe to the log, until nobody holds the writing end."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(output, "rb", 0)
    )
    rest = b""
    try:
        while piece := await reader.read(LINE):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                log.write(line + b"\n")
            if len(rest) > LINE:
                log.write(rest + b"\n")
                rest = b""
        if rest:
            log.write(rest + b"\n")
    finally:
        transport.close()

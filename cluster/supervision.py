"""Keeps one engine running, with the weights that are active.

Invariant: a client is handed out only while its engine process runs, is healthy, and samples from the active weights;
after a crash the active weights are brought back before the next is handed out. The active weights change in
`switch` alone, and only once an engine has taken them in.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Literal

from cluster.engine_log import EngineLog
from cluster.engine_process import EngineProcess, free_port
from cluster.engines.base import Engine, EngineClient, EngineError, LoadError, Probe
from cluster.refusal import Refusal, engine_down
from cluster.weight_store import BASE, Weights

State = Literal["starting", "ready", "activating", "restarting", "failed"]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """How patient supervision is, in seconds."""

    start_s: float = 900.0
    """From start to the first healthy answer; a large model takes minutes to load."""
    first_look_s: float = 0.1
    """Between two looks while an engine starts."""
    look_s: float = 2.0
    """Between two looks while it runs."""
    misses: int = 6
    """Looks without an answer in a row before a running engine is given up; each takes `base.PROBE_S` at most."""
    back_off_s: float = 0.5
    """Before a second start; doubled for each after it."""
    longest_back_off_s: float = 60.0
    steady_s: float = 60.0
    """A run this long forgives the failures before it."""
    failures: int = 3
    """Starts that failed in a row before the state is ``failed``. It is tried again all the same."""


class Supervision:
    """One engine, restarted when it ends."""

    def __init__(
        self, engine: Engine, engine_log: EngineLog, pace: Pace | None = None, grace_s: float = 10.0
    ) -> None:
        self.engine = engine
        self.active: Weights = BASE
        """What is sampled from, or will be once the engine is up."""
        self.restarts = 0
        self.probe: Probe | None = None
        """Of the first engine process; None until there was one."""
        self.process: EngineProcess | None = None
        self._log = engine_log
        self._pace = pace or Pace()
        self._grace_s = grace_s
        self._client: EngineClient | None = None
        self._state: State = "starting"
        self._since = time.monotonic()
        self._detail = ""
        self._again = asyncio.Event()
        """Set to have the engine restarted now."""
        self._loading = asyncio.Lock()
        self._fresh: asyncio.Future[bool] | None = None
        """Waited for by one who wants a fresh process: whether it came up."""

    @property
    def state(self) -> State:
        return self._state

    @property
    def seconds_in_state(self) -> float:
        return time.monotonic() - self._since

    @property
    def detail(self) -> str:
        """The engine's last words where it has failed."""
        return self._detail

    def client(self) -> EngineClient:
        """Of an engine that samples from `active`. Raises `Refusal` 503 while there is none."""
        if self._client is None:
            words = f": {self._detail}" if self._detail else ""
            raise engine_down(f"the engine is {self._state}{words}; ask again when /v1/health says ready")
        return self._client

    def is_current(self, client: EngineClient) -> bool:
        """Whether this client's process is still the one that samples."""
        return client is self._client

    def enter(self, state: State, detail: str = "") -> None:
        """A new state, and why."""
        if state != self._state:
            log.info("%s -> %s%s", self._state, state, f": {detail}" if detail else "")
            self._since = time.monotonic()
        self._state, self._detail = state, detail

    def settle(self) -> None:
        """After an activation: ready where an engine is up."""
        self.enter("ready" if self._client is not None else "restarting")

    async def run(self) -> None:
        """Keep it running until cancelled; then end it."""
        failures = 0
        try:
            while True:
                began = time.monotonic()
                was_ready = await self._one_process()
                if self._again.is_set():  # asked for: no fault of the engine's
                    continue
                failures = (
                    0 if was_ready and time.monotonic() - began >= self._pace.steady_s else failures + 1
                )
                self.restarts += 1
                lost = failures >= self._pace.failures and not was_ready
                self.enter("failed" if lost else "restarting", self._log.last_words())
                # An engine that ran and was killed is wanted back at once; one that cannot start is not hurried.
                exponent = failures - (2 if was_ready else 1)
                if exponent >= 0:
                    delay = min(self._pace.back_off_s * 2 ** min(exponent, 20), self._pace.longest_back_off_s)
                    await asyncio.sleep(delay)
        finally:
            await asyncio.shield(self._end_process())

    async def switch(self, weights: Weights) -> None:
        """Make these active. The gate is closed: no request is being answered.

        Raises `Refusal` 422 where the engine does not take them (the active ones are then still active), 503 where it
        ended meanwhile.
        """
        client = self.client()
        before = self.active
        if not self.engine.loads_in_place(client.weights, weights):
            await self._restarted_with(weights, before)
            return
        async with self._loading:
            try:
                await client.load(weights)
            except EngineError as error:
                self._client = None
                self.restarts += 1  # it died, whoever found out
                self._again.set()
                raise engine_down(
                    f"the engine ended while it loaded version {weights.version}: {error}"
                ) from None
            except LoadError as error:
                log.warning("version %d was not taken in: %s", weights.version, error)
                self._client = None
                self._again.set()  # it may hold some of one and some of the other: a fresh one holds the active
                raise Refusal(
                    422, f"the engine does not take version {weights.version}: {str(error)[:300]}"
                ) from None
            if not self.is_current(client):
                raise engine_down(f"the engine ended while it loaded version {weights.version}")
            self.active = weights

    async def _restarted_with(self, weights: Weights, before: Weights) -> None:
        """A fresh process on the new weights; the old ones are active again where it does not come up."""
        self._client, self.active = None, weights
        self._fresh = asyncio.get_running_loop().create_future()
        self._again.set()
        if not await self._fresh:
            why = self._log.last_words()
            self.active = before
            raise Refusal(422, f"the engine does not start with version {weights.version}: {why}")

    async def _one_process(self) -> bool:
        """Start one and watch it to its end; whether it was ever ready."""
        ready = False
        self._again.clear()
        fresh, self._fresh = self._fresh, None
        try:
            self._log.forget()
            port, weights = free_port(), self.active
            self.process = await EngineProcess.start(
                self.engine.command(port, weights), self.engine.environment(), self._log, self._grace_s
            )
            client = self.engine.client(port, self.engine.starts_with(weights))
            try:
                ready = await self._made_ready(self.process, client)
                if fresh is not None and not fresh.done():
                    fresh.set_result(ready)
                if ready:
                    await self._watched(self.process, client)
            finally:
                self._client = None
                await client.close()
        except Exception as error:  # whatever an engine does, the next one is started
            self._log.write(f"[worker] {type(error).__name__}: {error}\n".encode())
            log.warning("the engine did not come up: %s", error)
        finally:
            if fresh is not None and not fresh.done():
                fresh.set_result(False)
        await self._end_process()
        return ready

    async def _made_ready(self, process: EngineProcess, client: EngineClient) -> bool:
        """Wait for it, find out what it can do, give it the active weights."""
        ended = asyncio.create_task(process.ended())
        try:
            deadline = time.monotonic() + self._pace.start_s
            while not await client.healthy():
                if time.monotonic() > deadline:
                    self._log.write(b"[worker] error: the engine did not become healthy in time\n")
                    return False
                await asyncio.wait({ended}, timeout=self._pace.first_look_s)
                if ended.done():
                    return False
            healthy = time.monotonic()
            if (
                self.probe is None
            ):  # the same program as before can do the same; its first answers take seconds
                self.probe = await client.probe()
            async with self._loading:
                if client.weights != self.active:
                    await client.load(self.active)
                self._client = client
        finally:
            ended.cancel()
        if self._state != "activating":
            self.enter("ready")
        log.info(
            "the engine samples from version %d, %.2f s after its first healthy answer",
            self.active.version,
            time.monotonic() - healthy,
        )
        return True

    async def _watched(self, process: EngineProcess, client: EngineClient) -> None:
        """Until it ends, stops answering, or is to be restarted."""
        ended = asyncio.create_task(process.ended())
        again = asyncio.create_task(self._again.wait())
        misses = 0
        try:
            while misses < self._pace.misses:
                done, _ = await asyncio.wait(
                    {ended, again}, timeout=self._pace.look_s, return_when=asyncio.FIRST_COMPLETED
                )
                if done:
                    return
                misses = 0 if await client.healthy() else misses + 1
            log.warning("the engine has not answered %d times in a row and is restarted", misses)
        finally:
            ended.cancel()
            again.cancel()

    async def _end_process(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            await process.stop()

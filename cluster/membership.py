"""`Membership`: who is in the pool. One task tends each worker, from its first answer to its last.

Invariant: nothing that a member samples is taken before it answered as healthy, with the trainer's model, at the
version it was brought to, with a canary that holds; whatever goes wrong on the way closes it and starts over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from cluster.member import Member
from cluster.nodes import NodesConfig
from cluster.publishing import Publication, Publisher
from cluster.wire import Draw, ModelFingerprint
from cluster.worker_client import MisfitError, WorkerError

log = logging.getLogger(__name__)
AHEAD_S = 0.25
"""A worker is told of the next version so long before it should be done with what it was asked under the last one:
longer than messages take, and short enough that what it is asked then is not kept from one who is done earlier."""
EVICTED = "; it failed too often in a row"


class Membership:
    """All members. Lives in one event loop."""

    def __init__(
        self,
        members: Sequence[Member],
        nodes: NodesConfig,
        publisher: Publisher,
        model: ModelFingerprint | None,
        on_open: Callable[[Member], None],
        on_lost: Callable[[Member], None],
        draws: Sequence[Draw] = (),
    ) -> None:
        """``on_open``: it may be asked. ``on_lost``: what it was asked has to be asked of others. ``draws``: as it will
        be asked to draw."""
        self.members = members
        self.nodes = nodes
        self.publisher = publisher
        self.model = model
        self.draws = tuple(draws)
        self.gone_since: float | None = None
        """When the last member that had been open was lost; None while there is one."""
        self._on_open, self._on_lost = on_open, on_lost
        self._published = asyncio.Event()
        self._met = asyncio.Event()
        self._tried = {member: asyncio.Event() for member in members}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to tend them all."""
        self.gone_since = self._now()
        for member in self.members:
            member.retry_in = self.nodes.return_after_s
            self._tasks.append(asyncio.create_task(self._tend(member)))

    async def close(self) -> None:
        """Tend nobody any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def one_met(self) -> None:
        """Returns when a worker that will do has answered."""
        await self._met.wait()

    async def all_tried(self) -> None:
        """Returns when every worker has answered or failed to."""
        await asyncio.gather(*(event.wait() for event in self._tried.values()))

    def published(self) -> None:
        """The publisher has another version now."""
        self._published.set()
        for member in self.members:
            member.wake.set()

    def failed(self, member: Member, error: WorkerError) -> None:
        """It failed at a request: ask it nothing until it has been looked at."""
        self._note(member, error)
        member.suspect = True
        member.close_gate(self._now())
        member.wake.set()

    def succeeded(self, member: Member) -> None:
        """It delivered."""
        member.in_a_row, member.retry_in = 0, self.nodes.return_after_s

    def last_errors(self) -> str:
        """Each worker and why it is not here."""
        return "; ".join(f"{one.name} ({one.client.url}): {one.last_error}" for one in self.members)

    @property
    def hopeless(self) -> bool:
        """Every worker answers, and none will do as it was started: waiting does not mend that."""
        return all(one.misfits > 1 and not one.live for one in self.members)

    async def _tend(self, member: Member) -> None:
        while True:
            try:
                if member.live:
                    await self._attend(member)
                else:
                    await self._admit(member)
            except WorkerError as error:
                self._note(member, error)
                member.misfits = member.misfits + 1 if isinstance(error, MisfitError) else 0
                self._lose(member)
                self._tried[member].set()
                await asyncio.sleep(member.retry_in)
                member.retry_in = min(2 * member.retry_in, self.nodes.return_at_most_s)
            except Exception:
                # A fault of this program must neither leave a worker untended nor pass unseen.
                log.exception("tending worker %s went wrong", member.name)
                self._lose(member)
                self._tried[member].set()
                await asyncio.sleep(self.nodes.return_at_most_s)

    async def _admit(self, member: Member) -> None:
        """From a first answer to open."""
        health = await member.client.health()
        if health.state != "ready":
            raise WorkerError(
                f"its engine is {health.state}" + (f": {health.detail}" if health.detail else "")
            )
        member.info = await member.client.info(self.model)
        if problem := next(filter(None, map(member.draw_problem, self.draws)), None):
            raise MisfitError(problem)
        member.live = True
        self._met.set()
        self._tried[member].set()
        await self._published.wait()
        current = self._current()
        bases = member.verified & set(member.info.holds)
        await self._while_healthy(member, self._bring(member, current, bases, idle=True))
        log.info("worker %s is in at version %d", member.name, current.version)

    async def _attend(self, member: Member) -> None:
        """One round: look into a failure, bring a new version, or ask for its health."""
        with suppress(TimeoutError):
            # Not wait_for: Python 3.11's drops a cancellation that comes with the event.
            async with asyncio.timeout(self.nodes.heartbeat_s):
                await member.wake.wait()
        member.wake.clear()
        if member.in_a_row >= self.nodes.evict_after:
            raise WorkerError(member.last_error.removesuffix(EVICTED) + EVICTED)
        current = self._current()
        if not member.suspect and member.version is not None and member.version != current.version:
            await self._while_healthy(member, self._bring(member, current, member.verified, idle=False))
            return
        try:
            health = await member.client.health()
        except MisfitError:
            raise
        except WorkerError as error:
            self.failed(member, error)
            await asyncio.sleep(self.nodes.return_after_s)
            return
        if health.state != "ready" or health.policy_version != member.version:
            raise WorkerError(
                f"it is {health.state} at version {health.policy_version}, not {member.version}"
            )
        member.suspect = False
        if member.in_a_row >= self.nodes.evict_after:
            member.wake.set()  # more failed while it was being asked
        elif not member.open:
            self._open(member)

    async def _bring(self, member: Member, publication: Publication, bases: set[int], *, idle: bool) -> None:
        """Send, let what runs end, activate, check. Sampling goes on while the files are sent."""
        assert member.info is not None
        await self.publisher.send(member.client, publication, bases, idle=idle)
        member.close_gate(self._now())
        await self._nearly_idle(member)
        known = member.trust.is_set()
        # It was right before: let it sample while it is asked for the canary, and take nothing until it passes. Ask
        # right behind the activation, or an engine that has to be started anew would hold what others could do.
        ahead = known and not _restarts(member, publication)
        before = [one.name for one in member.flights]
        activating = asyncio.create_task(member.client.activate(publication.version, before))
        try:
            if ahead:
                await asyncio.sleep(0)  # it is on its way
                member.at(publication.version)
                self._open(member)
            await activating
        finally:
            activating.cancel()
            await asyncio.gather(activating, return_exceptions=True)
        if not ahead:
            member.at(publication.version)
            if known:
                self._open(member)
        await self.publisher.check(member.client, member.info.features, publication)
        member.trust.set()
        # Only full weights have deltas, and only the newest can be the base of one.
        member.verified = {publication.version}
        member.misfits = 0
        if not known:
            member.in_a_row = 0 if member.in_a_row >= self.nodes.evict_after else member.in_a_row
            member.suspect = False
            self._open(member)

    async def _nearly_idle(self, member: Member) -> None:
        """Returns when it has nothing to do, or soon will have; or when that takes too long to wait for: the worker
        lets what runs end, or cuts it off."""
        patience = self._now() + self.nodes.abort_after_s
        while member.flights:
            left = min(member.due_in(self._now()) - AHEAD_S, patience - self._now())
            if left <= 0:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await member.idle.wait()

    async def _while_healthy(self, member: Member, work: Coroutine[Any, Any, None]) -> None:
        """Do this, but not for longer than the worker answers at all: a cut line must not cost a long time-out.

        Nor may a line that was cut for a moment: a worker that is back, and still says nothing and takes nothing,
        has lost the request or we have lost the reply.
        """
        task = asyncio.create_task(work)
        silent, quiet, interrupted, moved = 0, 0, False, member.client.bytes_moved
        try:
            while not (await asyncio.wait({task}, timeout=self.nodes.heartbeat_s))[0]:
                try:
                    health = await member.client.health()
                except WorkerError:
                    silent, interrupted = silent + 1, True
                    if silent >= self.nodes.evict_after and not task.done():
                        raise
                    continue
                busy = health.state == "activating" or member.client.bytes_moved > moved
                silent, quiet, moved = 0, 0 if busy else quiet + 1, member.client.bytes_moved
                if interrupted and quiet >= self.nodes.evict_after and not task.done():
                    raise WorkerError("it is back after an interruption and owes an answer; asked anew")
            await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _open(self, member: Member) -> None:
        member.open = True
        self.gone_since = None
        self._on_open(member)

    def _lose(self, member: Member) -> None:
        member.lost(self._now())
        if self.gone_since is None and all(one.version is None for one in self.members):
            self.gone_since = self._now()
        self._on_lost(member)

    def _note(self, member: Member, error: WorkerError) -> None:
        member.failures += member.live  # what is away fails at every try to bring it back
        member.in_a_row += 1
        if str(error) != member.last_error:
            log.warning("worker %s (%s): %s", member.name, member.client.url, error)
        member.last_error = str(error)

    def _current(self) -> Publication:
        assert self.publisher.current is not None
        return self.publisher.current

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _restarts(member: Member, publication: Publication) -> bool:
    """Whether its engine is started anew for this version."""
    assert member.info is not None
    return publication.snapshot.kind == "full" and member.info.features.full_weights == "restart"

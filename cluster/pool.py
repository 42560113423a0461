"""`Pool`: hands groups out to the workers and takes them in again.

Invariant: every group of every batch is delivered exactly once, whole and aligned with its own prompt, sampled no
more than ``max_staleness`` versions ago, or `Pool.wait` raises `NoSamplerError` with one clear sentence. A place of
an open batch is always in exactly one of these: delivered, pending, planned for one member, or in flight (twice at
most, of which one counts). `cluster.delivery` keeps the account.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import uuid
from collections.abc import Callable, Iterable, Sequence

from cluster.delivery import Delivered, Delivery, Totals
from cluster.hedging import hedges, thefts
from cluster.member import Batch, Flight, Member
from cluster.membership import Membership
from cluster.nodes import NodesConfig
from cluster.publishing import Publisher
from cluster.snapshot import Snapshot
from cluster.throughput import shares, speeds_of
from cluster.wire import Draw, GenerateReply, GenerateRequest, ModelFingerprint
from cluster.worker_client import WorkerError
from mlx_sumrl.errors import UserError
from mlx_sumrl.rollouts.types import NoSamplerError

log = logging.getLogger(__name__)
TICK_S = 0.05
"""How often it is looked for what no event tells of: slow requests, time that has run out."""
MEMORY = 0.1
"""Weight of the newest completions in the mean length."""


class Pool:
    """All batches that are open. Lives in one event loop."""

    def __init__(
        self,
        members: Sequence[Member],
        nodes: NodesConfig,
        publisher: Publisher,
        stop_ids: Sequence[int],
        model: ModelFingerprint | None = None,
        draws: Sequence[Draw] = (),
    ) -> None:
        """``model`` is what the workers' must equal; None asks for nothing. ``draws``: as they have to be able to."""
        self.members = members
        self.nodes = nodes
        self.publisher = publisher
        self.totals = Totals()
        self.membership = Membership(members, nodes, publisher, model, self._opened, self._lost, draws)
        self.on_delivered: Callable[[Batch, int, Delivered], None] | None = None
        """Called in the event loop for each place as it is delivered; it may still be asked again."""
        self._stop_ids = tuple(sorted(stop_ids))
        self._batches: list[Batch] = []
        self._number = 0
        self._requests = 0
        self._run = uuid.uuid4().hex[:8]
        self._mean_length: float | None = None
        self._tick: asyncio.TimerHandle | None = None

    def publish(self, snapshot: Snapshot) -> None:
        """Bring this version to every worker."""
        self.publisher.publish(snapshot)
        self.membership.published()

    def submit(
        self, prompts: Sequence[tuple[int, ...]], group_size: int, draw: Draw, seed: int, floor: int
    ) -> Batch:
        """Begin on a batch, under versions from ``floor`` on, as soon as a member has one.

        Raises `UserError` where a worker cannot draw like that.
        """
        self._check(prompts, draw)
        self._number += 1
        delivery = Delivery(prompts, self.totals)
        batch = Batch(self._number, prompts, group_size, draw, seed, floor, delivery)
        batch.pending = list(range(len(prompts)))
        batch.progress_at = self._now()
        self._batches.append(batch)
        self._hand_out(self.members)
        self._start_ticking()
        return batch

    async def wait(self, batch: Batch, floor: int) -> list[Delivered]:
        """All groups in the order of the prompts, none sampled by a version below ``floor``; the batch is closed.

        Raises `NoSamplerError` when no worker is left, or none has got anything done, for the time that is set.
        """
        batch.floor = floor
        batch.done = asyncio.get_running_loop().create_future()
        batch.progress_at = self._now()
        batch.pending += batch.delivery.too_old(floor)
        stale = [one for flights in batch.flights.values() for one in flights if one.version < floor]
        for flight in {id(one): one for one in stale}.values():
            open_again = self._withdraw(flight)
            batch.delivery.gone_stale(len(open_again))
            batch.pending += open_again
        self._settle(batch)
        self._hand_out(self.members)
        try:
            await batch.done
            return batch.delivery.closed()
        except BaseException:
            batch.delivery.discarded()
            raise
        finally:
            self._forget(batch)

    def discard(self, batch: Batch) -> None:
        """Nobody will wait for it."""
        batch.delivery.discarded()
        self._forget(batch)

    async def close(self) -> None:
        """End everything under way and close all connections."""
        if self._tick is not None:
            self._tick.cancel()
        tasks = [one.task for member in self.members for one in member.flights if one.task is not None]
        for batch in list(self._batches):
            self.discard(batch)
        await self.membership.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(member.client.close() for member in self.members))
        await self.publisher.close()

    # From pending to planned, from planned to asked.

    def _hand_out(self, members: Iterable[Member]) -> None:
        asked = dict.fromkeys(members)
        for batch in self._batches:
            if batch.pending:
                asked |= dict.fromkeys(self._plan(batch))
        for member in asked:
            self._ask(member)

    def _plan(self, batch: Batch) -> list[Member]:
        """Every pending place to the member that should be done with it first, whether it is open yet or not."""
        now, tokens = self._now(), self._tokens(batch)
        live = [one for one in self.members if one.live]
        if not live:
            return []
        places, batch.pending = sorted(batch.pending), []
        speeds = speeds_of([one.throughput for one in live])
        ends = [
            one.throughput.finish_at(now, len(one.queue) * tokens, speed)
            for one, speed in zip(live, speeds, strict=True)
        ]
        for place, index in zip(places, shares(ends, speeds, [tokens] * len(places)), strict=True):
            chosen = live[index]
            if batch.avoid.get(place) is chosen and len(live) > 1:
                others = [other for other in range(len(live)) if other != index]
                chosen = live[min(others, key=lambda other: ends[other] + tokens / speeds[other])]
            chosen.queue.append((batch, place))
        return live

    def _ask(self, member: Member) -> None:
        """As much of what is planned for it as it takes at once."""
        while member.live and member.open and member.version is not None and member.queue:
            # What still runs under the version before does not count: by the worker's gate it ends first.
            asked = member.asked_now
            if asked and (member.takes_batches or asked >= self.nodes.max_in_flight):
                return
            ready = [one for one, _ in member.queue if one.floor <= member.version]
            if not ready:
                return
            batch = min(ready, key=lambda one: one.number)  # what is wanted first, however late it came back
            places = sorted(place for one, place in member.queue if one is batch)
            if not member.takes_batches:
                places = places[:1]
            for place in places:
                member.queue.remove((batch, place))
            self._launch(member, batch, tuple(places))

    def _launch(self, member: Member, batch: Batch, places: tuple[int, ...]) -> None:
        now, tokens = self._now(), self._tokens(batch) * len(places)
        (speed,) = self._speeds([member])
        due = member.throughput.asked(now, tokens, speed)
        assert member.version is not None
        self._requests += 1
        name = f"{self._run}-{batch.number}-{self._requests}"
        flight = Flight(name, member, batch, places, tokens, member.version, member.trust, now, due)
        member.flights.add(flight)
        member.idle.clear()
        for place in places:
            batch.flights.setdefault(place, []).append(flight)
        flight.task = asyncio.create_task(self._fly(flight))

    async def _fly(self, flight: Flight) -> None:
        batch, places = flight.batch, flight.places
        whole = places == tuple(range(len(batch.prompts)))
        request = GenerateRequest(
            request_id=flight.name,
            prompts=tuple(batch.prompts[place] for place in places),
            group_size=batch.group_size,
            draw=batch.draw,
            # One engine that samples a whole batch does what the trainer's own sampler does, bit for bit.
            seed=batch.seed if whole else seed_of(batch.seed, places),
            stop_ids=self._stop_ids,
            policy_version=flight.version,
        )
        try:
            reply = await flight.member.client.generate(request)
            await flight.trust.wait()  # without it, whoever tends the member withdraws this request
        except WorkerError as error:
            self._failed(flight, error)
        else:
            self._landed(flight, reply)

    # From asked to delivered, or back to pending.

    def _landed(self, flight: Flight, reply: GenerateReply) -> None:
        member, batch = flight.member, flight.batch
        if flight not in member.flights:
            return  # withdrawn while the reply was on its way up
        lengths = [len(one.token_ids) for group in reply.groups for one in group.completions]
        (speed,) = self._speeds([member])
        member.throughput.answered(self._now(), flight.tokens, sum(lengths), speed)
        mean = sum(lengths) / len(lengths)
        before = mean if self._mean_length is None else self._mean_length
        self._mean_length = before + MEMORY * (mean - before)
        self.membership.succeeded(member)
        self._unhook(flight)
        for place, group in zip(flight.places, reply.groups, strict=True):
            delivered = Delivered(group, reply.policy_version, member.name)
            if batch.delivery.take(place, delivered) and self.on_delivered is not None:
                self.on_delivered(batch, place, delivered)
        batch.progress_at = self._now()
        for place in flight.places:
            for copy in tuple(batch.flights.get(place, ())):
                if all(one in batch.delivery.done for one in copy.places):
                    self._withdraw(copy)
                    self._ask(copy.member)
        self._settle(batch)
        self._ask(member)
        if not member.flights and any(one.queue for one in self.members):
            self._share_out(member)

    def _failed(self, flight: Flight, error: WorkerError) -> None:
        member, batch = flight.member, flight.batch
        if flight not in member.flights:
            return
        (speed,) = self._speeds([member])
        member.throughput.answered(self._now(), flight.tokens, 0.0, speed)
        self._unhook(flight)
        self.membership.failed(member, error)
        self._again(batch, self._open_places(flight), member)
        self._hand_out(self.members)

    def _again(self, batch: Batch, places: list[int], member: Member) -> None:
        batch.delivery.failed(len(places))
        batch.pending += places
        batch.avoid.update(dict.fromkeys(places, member))

    def _lost(self, member: Member) -> None:
        """Ask others for all that it had."""
        for batch, place in member.queue:
            batch.pending.append(place)
        member.queue.clear()
        for flight in tuple(member.flights):
            self._again(flight.batch, self._withdraw(flight), member)
        self._hand_out(self.members)

    def _opened(self, member: Member) -> None:
        self._hand_out([member])
        if not member.flights:
            self._share_out(member)

    def _withdraw(self, flight: Flight) -> list[int]:
        """End a request that is no longer wanted; its places that are now neither delivered nor asked for."""
        (speed,) = self._speeds([flight.member])
        flight.member.throughput.withdrawn(self._now(), flight.tokens, speed)
        self._unhook(flight)
        if flight.task is not None:
            flight.task.cancel()
        return self._open_places(flight)

    def _open_places(self, flight: Flight) -> list[int]:
        batch = flight.batch
        return [one for one in flight.places if one not in batch.delivery.done and not batch.flights.get(one)]

    def _unhook(self, flight: Flight) -> None:
        flight.member.flights.discard(flight)
        if not flight.member.flights:
            flight.member.idle.set()
        for place in flight.places:
            flight.batch.flights[place].remove(flight)

    def _settle(self, batch: Batch) -> None:
        if batch.delivery.whole and batch.done is not None and not batch.done.done():
            batch.done.set_result(None)

    def _forget(self, batch: Batch) -> None:
        if batch in self._batches:
            self._batches.remove(batch)
        touched = set()
        for member in self.members:
            if any(one is batch for one, _ in member.queue):
                member.queue = type(member.queue)(entry for entry in member.queue if entry[0] is not batch)
            for flight in tuple(member.flights):
                if flight.batch is batch:
                    self._withdraw(flight)
                    touched.add(member)
        self._hand_out(touched)

    # What no event tells of.

    def _start_ticking(self) -> None:
        if self._tick is None:
            self._tick = asyncio.get_running_loop().call_later(TICK_S, self._on_tick)

    def _on_tick(self) -> None:
        self._tick = None
        if not self._batches:
            return
        self._start_ticking()
        self._hand_out(())
        for member in self.members:
            if not member.flights:
                self._share_out(member)
        for batch in self._batches:
            if batch.done is not None and not batch.done.done() and (sentence := self._out_of_time(batch)):
                batch.done.set_exception(NoSamplerError(sentence))

    def _share_out(self, member: Member) -> None:
        """Give a member with nothing to do some of what others have not begun, or a copy of what is slow there."""
        if not member.open:
            return
        now = self._now()
        for batch in self._batches:
            tokens = self._tokens(batch)
            if stolen := thefts(member, self.members, batch, tokens, now):
                for thief_of, place in stolen:
                    thief_of.queue.remove((batch, place))
                    member.queue.append((batch, place))
                self._ask(member)
            if not member.flights and self.nodes.hedge:
                places = hedges(member, self.members, batch, tokens, now)
                self.totals.hedged += len(places)
                for group in [places] if member.takes_batches else [[place] for place in places]:
                    if group:
                        self._launch(member, batch, tuple(group))

    def _out_of_time(self, batch: Batch) -> str | None:
        now, gone = self._now(), self.membership.gone_since
        out = "no worker is left to sample from"
        mend = "start one again and resume the run"
        if self.membership.hopeless:
            return f"{out}: {self.membership.last_errors()}; {mend}"
        waited = self.nodes.wait_for_workers_s
        if gone is not None and now - gone >= waited and not any(one.live for one in self.members):
            return f"{out} after {waited:g} s of waiting: {self.membership.last_errors()}; {mend}"
        waited += self.nodes.request_timeout_s
        if now - batch.progress_at >= waited:
            return (
                f"no worker has delivered a group for {waited:g} s: {self.membership.last_errors()}; {mend}"
            )
        return None

    def _check(self, prompts: Sequence[tuple[int, ...]], draw: Draw) -> None:
        longest = max(len(prompt) for prompt in prompts) + draw.max_tokens
        for member in self.members:
            if member.info is None:
                continue
            if problem := member.draw_problem(draw):
                raise UserError(f"worker {member.name} {problem}")
            if longest > member.info.max_tokens:
                raise UserError(
                    f"worker {member.name} takes {member.info.max_tokens} tokens, and the longest prompt with its "
                    f"completion may have {longest}; start it with a larger --max-model-len, or lower max_tokens"
                )

    def _tokens(self, batch: Batch) -> float:
        """Expected of one group."""
        return batch.group_size * min(self._mean_length or batch.draw.max_tokens, batch.draw.max_tokens)

    def _speeds(self, members: Sequence[Member]) -> list[float]:
        if all(one.throughput.measured is not None for one in members):
            return speeds_of([one.throughput for one in members])
        speeds = speeds_of([one.throughput for one in self.members])
        return [speeds[self.members.index(one)] for one in members]

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def seed_of(seed: int, places: Sequence[int]) -> int:
    """A request's own seed in [0, 2**63): the same places of the same batch draw the same again."""
    text = f"{seed} {' '.join(map(str, places))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

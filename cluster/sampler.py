"""`ClusterSampler`: rollouts from other machines, to the training loop a sampler like any other.

Invariant: an event loop in a thread of its own does all that takes time; the training thread hands over what was
decided (a snapshot, a request) and waits only inside of `sample`. After `close` neither thread nor socket is left.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self, TypeVar
from weakref import WeakKeyDictionary

from cluster.delivery import Delivered
from cluster.member import Batch, Member
from cluster.nodes import NodesConfig
from cluster.pool import Pool
from cluster.publishing import Publisher, snapshot_problem
from cluster.snapshot import Canary, Snapshot
from cluster.wire import Draw, ModelFingerprint
from cluster.worker_client import WorkerClient
from mlx_sumrl.data.example import Example
from mlx_sumrl.errors import UserError
from mlx_sumrl.rollouts.types import Completion, Group, NoSamplerError, Sampling

T = TypeVar("T")
Asked = tuple[tuple[tuple[int, ...], ...], int, Sampling, int]
"""Prompts, group size, sampling, seed: what makes two requests the same."""


class ClusterSampler:
    """Samples from the workers of a ``nodes.yaml``; implements `TrainingSampler`. Use as a context manager."""

    def __init__(
        self,
        nodes: NodesConfig,
        *,
        snapshot: Callable[[int], Snapshot],
        decode: Callable[[Sequence[int]], str],
        canary_ids: Sequence[int],
        stop_ids: Collection[int],
        vocabulary: int,
        model: ModelFingerprint | None = None,
        drawn: Sequence[Sampling] = (),
    ) -> None:
        """Meets the workers; returns once one of them has answered and all have been tried.

        ``snapshot`` is called inside of `publish`, in the caller's thread. ``decode`` turns ids (without the stop
        token) into a completion's text. ``vocabulary``: ids are below. ``model``: what the workers' must equal.
        ``drawn``: how they will be asked to sample, as far as that is known, and so have to be able to.
        Raises `UserError` for a worker that will never do, `NoSamplerError` when none answers for
        ``wait_for_workers_s``.
        """
        self.nodes = nodes
        self._snapshot, self._decode = snapshot, decode
        self._canary = Canary(tuple(canary_ids), tuple(sorted(stop_ids)))
        self.on_group: Callable[[Group], None] | None = None
        """See `TrainingSampler`; called in the event loop's thread."""
        self._examples: WeakKeyDictionary[Batch, Sequence[Example]] = WeakKeyDictionary()
        """Of each batch that is open."""
        self._version: int | None = None
        self._sent: int | None = None
        self._jump = 1
        self._publications = 0
        self._prepared: list[tuple[Asked, Future[Batch]]] = []
        """In the order in which they are going to be sampled."""
        self._sampled = False
        """Since the policy last changed."""
        self._requeued = 0
        self._requeued_before = 0
        self._waited = 0.0
        workers = nodes.all_workers()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cluster", daemon=True)
        self._thread.start()
        self._pool: Pool | None = None
        try:
            self._pool = self._do(self._made([*workers], vocabulary, model, drawn))
            self._do(self._met())
        except BaseException:
            self.close()
            raise

    @property
    def ahead(self) -> int:
        """As many steps as a version may be old when it is trained on; without staleness the next one is told of, so
        that it begins with the version that it waits for."""
        return max(self.nodes.max_staleness, 1)

    def publish(self, policy_version: int) -> None:
        """Bring the policy as it is now to the workers, beside the training; see `TrainingSampler`.

        With ``publish_every`` above 1 some versions stay here. Raises `UserError` for a snapshot that cannot be sent.
        """
        self._sampled = False
        if policy_version == self._version:
            return
        if self._version is not None and policy_version > self._version:
            self._jump = policy_version - self._version
        self._version = policy_version
        self._publications += 1
        # A version may be left out only as long as the one that the workers have may still be sampled from.
        due = self._sent is None or not 0 <= policy_version - self._sent <= self.nodes.max_staleness
        if not due and self._publications < self.nodes.publish_every:
            return
        snapshot = self._snapshot(policy_version)
        if problem := snapshot_problem(snapshot, policy_version, self._canary, self.nodes):
            raise UserError(problem)
        self._sent, self._publications = policy_version, 0
        pool = self._open()
        self._loop.call_soon_threadsafe(pool.publish, snapshot)

    def prepare(self, examples: Sequence[Example], group_size: int, sampling: Sampling, seed: int) -> None:
        """Begin on a later `sample`, as soon as the workers have a version that will not be too old for it; see
        `TrainingSampler`. What is wrong with it is raised by that `sample`.
        """
        asked = _asked(examples, group_size, sampling, seed)
        if not examples or any(one == asked for one, _ in self._prepared):
            return
        # Each sample before it is followed by an update, and that by as much as the last one.
        ahead = self._jump * (self._sampled + len(self._prepared))
        floor = self._policy_version() + ahead - self.nodes.max_staleness
        submitted = asyncio.run_coroutine_threadsafe(self._submitted(examples, asked, floor), self._loop)
        self._prepared.append((asked, submitted))

    def sample(
        self, examples: Sequence[Example], group_size: int, sampling: Sampling, seed: int
    ) -> list[Group]:
        """One group per example, in their order; see `Sampler`. Raises `UserError` and `NoSamplerError`."""
        started = time.perf_counter()
        pool = self._open()
        asked = _asked(examples, group_size, sampling, seed)
        floor = self._policy_version() - self.nodes.max_staleness
        if not examples:
            return []
        place = next((place for place, (one, _) in enumerate(self._prepared) if one == asked), None)
        passed_over = self._prepared[:place]
        begun = None if place is None else self._prepared[place][1]
        self._prepared = [] if place is None else self._prepared[place + 1 :]
        for _, unwanted in passed_over:
            self._do(self._discarded(unwanted.result()))
        batch = begun.result() if begun else self._do(self._submitted(examples, asked, floor))
        self._sampled = True
        delivered = self._do(pool.wait(batch, floor))
        self._waited = time.perf_counter() - started
        # Counted from one sample to the next, so that what failed ahead of it is told too.
        self._requeued = pool.totals.requeued - self._requeued_before
        self._requeued_before = pool.totals.requeued
        assert pool.totals.lost == self._ahead(), "groups were asked for and neither delivered nor discarded"
        return [
            Group(example, self._completions(one)) for example, one in zip(examples, delivered, strict=True)
        ]

    def report(self) -> Mapping[str, float]:
        """Of the last `sample`: ``groups/requeued``, ``time/wait`` (s); of the run: ``cluster/…``, by worker too."""
        pool = self._open()
        wait(submitted for _, submitted in self._prepared)  # or some are told of and not counted yet
        metrics = {
            "groups/requeued": float(self._requeued),
            "time/wait": self._waited,
            **pool.totals.metrics(),
            "cluster/bytes_sent": float(pool.publisher.bytes_sent),
        }
        # What is asked ahead is open, and not lost.
        metrics["cluster/lost"] -= self._ahead()
        for member in pool.members:
            metrics |= member.metrics()
        return metrics

    def status(self) -> str:
        """Each worker for the progress line: version, tokens/s, groups asked, failures."""
        return "  ".join(member.status() for member in self._open().members)

    def close(self) -> None:
        """End all that is under way; may be called again."""
        if self._loop.is_closed():
            return
        try:
            if self._pool is not None:
                self._prepared = []
                self._do(self._pool.close())
        finally:
            self._pool = None
            self._do(self._loop.shutdown_default_executor())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _completions(self, delivered: Delivered) -> tuple[Completion, ...]:
        stops = frozenset(self._canary.stop_ids)
        return tuple(
            Completion(
                token_ids=one.token_ids,
                logprobs=one.logprobs,
                finish_reason=one.finish_reason,
                policy_version=delivered.version,
                text=self._decode(one.token_ids[:-1] if one.token_ids[-1] in stops else one.token_ids),
            )
            for one in delivered.group.completions
        )

    def _ahead(self) -> int:
        """Groups that are asked for and not waited for yet."""
        return sum(len(prompts) for (prompts, *_), _ in self._prepared)

    def _policy_version(self) -> int:
        if self._version is None:
            raise RuntimeError("nothing was published yet: call publish before sample")
        return self._version

    def _open(self) -> Pool:
        if self._pool is None:
            raise RuntimeError("this sampler is closed")
        return self._pool

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        """What it returns or raises, from the other thread; given up when this one is interrupted."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def _made(
        self, workers: list[Any], vocabulary: int, model: ModelFingerprint | None, drawn: Sequence[Sampling]
    ) -> Pool:
        members = [Member(WorkerClient(one, self.nodes, vocabulary)) for one in workers]
        publisher = Publisher(self.nodes, self._canary)
        draws = [Draw(**asdict(sampling)) for sampling in drawn]
        pool = Pool(members, self.nodes, publisher, self._canary.stop_ids, model, draws)
        pool.on_delivered = self._delivered
        return pool

    async def _met(self) -> None:
        pool = self._open()
        pool.membership.start()
        await pool.membership.all_tried()
        if wrong := [one for one in pool.members if one.misfits]:
            raise UserError(
                "; ".join(f"worker {one.name} ({one.client.url}): {one.last_error}" for one in wrong)
            )
        try:
            async with asyncio.timeout(self.nodes.wait_for_workers_s):
                await pool.membership.one_met()
        except TimeoutError:
            raise NoSamplerError(
                f"no worker answers after {self.nodes.wait_for_workers_s:g} s: {pool.membership.last_errors()}; "
                "start one of them"
            ) from None

    async def _submitted(self, examples: Sequence[Example], asked: Asked, floor: int) -> Batch:
        prompts, group_size, sampling, seed = asked
        batch = self._open().submit(prompts, group_size, Draw(**asdict(sampling)), seed, floor)
        self._examples[batch] = examples
        return batch

    def _delivered(self, batch: Batch, place: int, delivered: Delivered) -> None:
        if self.on_group is not None:
            with suppress(Exception):  # it is met again, and told, where this group is sampled
                self.on_group(Group(self._examples[batch][place], self._completions(delivered)))

    async def _discarded(self, batch: Batch) -> None:
        self._open().discard(batch)


def _asked(examples: Sequence[Example], group_size: int, sampling: Sampling, seed: int) -> Asked:
    return tuple(example.prompt_ids for example in examples), group_size, sampling, seed

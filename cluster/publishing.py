"""`Publisher`: brings a version's files to a worker and holds the worker's log-probabilities against the trainer's.

Invariant: a worker passes only where it holds every byte of the version that was announced (sha256, checked over
there) and its log-probabilities of the canary equal the trainer's within the tolerance (checked here). A delta is
a short cut: where it fails for any reason, the whole version is sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import logging
import shutil
import tempfile
from collections.abc import Collection, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.nodes import NodesConfig
from cluster.snapshot import Canary, Snapshot
from cluster.wire import Draw, Features, GenerateRequest, Manifest, ScoreRequest, WeightFile
from cluster.worker_client import MisfitError, NonsenseError, RefusedError, WorkerClient, WorkerError
from mlx_sumrl.errors import UserError

log = logging.getLogger(__name__)
FILES_AT_ONCE = 4
"""To one worker."""
KEPT = 2
"""Versions whose files stay here: the newest, and the one that a delta to it starts from."""


@dataclass(frozen=True)
class Parcel:
    """Files that make a version, and what to say of them first."""

    manifest: Manifest
    folder: Path

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(one.bytes for one in self.manifest.files.values())


@dataclass(eq=False)
class Publication:
    """A snapshot on its way to the workers; its parcels are made once for all of them."""

    snapshot: Snapshot
    users: int = 0
    """Workers that its files are being sent to."""
    parcels: dict[int | None, asyncio.Task[Parcel | None]] = field(default_factory=dict)
    """By the version that a delta starts from; None for the whole."""
    patches: list[Path] = field(default_factory=list)

    @property
    def version(self) -> int:
        """Of the policy."""
        return self.snapshot.version


class Publisher:
    """All versions that were published, the newest first in mind. Lives in one event loop."""

    def __init__(self, nodes: NodesConfig, canary: Canary) -> None:
        self.nodes = nodes
        self.canary = canary
        self.current: Publication | None = None
        self.bytes_sent = 0
        self._held: list[Publication] = []

    def publish(self, snapshot: Snapshot) -> None:
        """This is the policy from now on; older versions' files go once nobody is being sent them."""
        self.current = Publication(snapshot)
        self._held.append(self.current)
        self._tidy()

    async def close(self) -> None:
        """Remove what is left of all versions."""
        for publication in self._held:
            for task in publication.parcels.values():
                task.cancel()
            await asyncio.gather(*publication.parcels.values(), return_exceptions=True)
            publication.users = 0
        self.current = None
        self._tidy(keep=0)

    async def send(
        self, client: WorkerClient, publication: Publication, bases: Collection[int], *, idle: bool
    ) -> None:
        """Have the worker hold this version, whole and checked. Raises `WorkerError`.

        ``bases`` are versions that a delta may start from. ``idle``: nothing is asked of the worker at the moment,
        so that it may be put back to version 0 where another run's version of the same number is in the way.
        """
        if publication.version == 0:
            return  # the model that every worker was started with; the canary tells if it was another
        publication.users += 1
        try:
            for base in sorted(bases, reverse=True):
                parcel = await self._parcel(publication, base)
                if parcel is not None and await self._sent_as_delta(client, publication, parcel):
                    return
            whole = await self._parcel(publication, None)
            assert whole is not None
            try:
                await self._deliver(client, publication.version, whole)
            except RefusedError as error:
                if error.status != 409 or not idle:
                    raise
                await client.activate(0)
                await self._deliver(client, publication.version, whole)
        finally:
            publication.users -= 1
            self._tidy()

    async def check(self, client: WorkerClient, features: Features, publication: Publication) -> None:
        """Hold the worker's log-probabilities of the canary against the trainer's. Raises `MisfitError`."""
        if features.score:
            request = ScoreRequest(token_ids=self.canary.token_ids, policy_version=publication.version)
            reply = await client.score(request)
            there, here = reply.logprobs, publication.snapshot.canary_logprobs
            off = max(abs(a - b) for a, b in zip(there, here, strict=True))
        else:
            off = await self._greedy_difference(client, publication)
        if not off <= self.nodes.canary_tolerance:
            raise MisfitError(
                f"its log-probabilities of the canary text under version {publication.version} are {off:.2g} off "
                f"the trainer's, more than canary_tolerance {self.nodes.canary_tolerance:g}; start it with the "
                "trainer's model and dtype"
            )

    async def _greedy_difference(self, client: WorkerClient, publication: Publication) -> float:
        snapshot = publication.snapshot
        if not snapshot.greedy_ids:
            raise MisfitError(
                "its engine cannot score a text, and the trainer gave no greedy answer to compare"
            )
        request = GenerateRequest(
            request_id=f"canary-{publication.version}",
            prompts=(self.canary.token_ids,),
            group_size=1,
            draw=Draw(temperature=0.0, max_tokens=len(snapshot.greedy_ids)),
            seed=0,
            stop_ids=self.canary.stop_ids,
            policy_version=publication.version,
        )
        (group,) = (await client.generate(request)).groups
        (completion,) = group.completions
        worst = 0.0
        for token, logprob, own_token, own_logprob in zip(
            completion.token_ids,
            completion.logprobs,
            snapshot.greedy_ids,
            snapshot.greedy_logprobs,
            strict=False,
        ):
            worst = max(worst, abs(logprob - own_logprob))
            if token != own_token:
                break  # as likely as the trainer's own within the tolerance, or `worst` says so; then texts part
        return worst

    async def _sent_as_delta(self, client: WorkerClient, publication: Publication, parcel: Parcel) -> bool:
        try:
            await self._deliver(client, publication.version, parcel)
        except RefusedError as error:
            log.info("worker %s takes no delta of version %d: %s", client.name, publication.version, error)
            return False
        return True

    async def _deliver(self, client: WorkerClient, version: int, parcel: Parcel) -> None:
        """Announce, send what is missing (so that a broken transfer goes on where it was), complete."""
        stored = await client.announce(version, parcel.manifest)
        if stored.complete:
            return
        for name in stored.missing:
            if name not in parcel.manifest.files:
                raise NonsenseError(f"it misses the file {name}, which version {version} has not got")
        # Small files beside one another: an adapter's two cost one round trip. Large ones share the line anyway.
        turns = asyncio.Semaphore(FILES_AT_ONCE)

        async def sent(name: str) -> None:
            async with turns:
                await client.send(version, parcel.folder / name)
            self.bytes_sent += parcel.manifest.files[name].bytes

        await _all_or_none([sent(name) for name in stored.missing])
        if not (stored := await client.complete(version)).complete:
            raise WorkerError(
                f"version {version} has not arrived whole: {', '.join(stored.missing)} is missing"
            )

    async def _parcel(self, publication: Publication, base: int | None) -> Parcel | None:
        if base not in publication.parcels:
            work = self._whole(publication) if base is None else self._delta(publication, base)
            publication.parcels[base] = asyncio.create_task(work)
        # One worker's end must not take the parcel from the others.
        return await asyncio.shield(publication.parcels[base])

    async def _whole(self, publication: Publication) -> Parcel:
        snapshot = publication.snapshot
        files = await asyncio.to_thread(_files_of, snapshot.folder)
        return Parcel(Manifest(kind=snapshot.kind, files=files), snapshot.folder)

    async def _delta(self, publication: Publication, base: int) -> Parcel | None:
        """What turns ``base`` into this version, or None where there is no such thing or it would be no shorter."""
        old = next((one for one in self._held if one.version == base), None)
        make_patch = _patch_maker()
        if old is None or make_patch is None or {old.snapshot.kind, publication.snapshot.kind} != {"full"}:
            return None
        old.users += 1
        folder = Path(tempfile.mkdtemp(prefix="patch-", dir=publication.snapshot.folder.parent))
        publication.patches.append(folder)
        try:
            summary = await asyncio.to_thread(
                make_patch, old.snapshot.folder, publication.snapshot.folder, folder
            )
            files = await asyncio.to_thread(_files_of, folder)
            manifest = Manifest(kind="delta", files=files, base=base, fingerprint=summary.fingerprint)
        except (UserError, ValueError, OSError) as error:
            log.warning("no delta from version %d to %d: %s", base, publication.version, error)
            return None
        finally:
            old.users -= 1
        whole = await self._parcel(publication, None)
        parcel = Parcel(manifest, folder)
        return parcel if whole is not None and parcel.bytes < whole.bytes else None

    def _tidy(self, keep: int = KEPT) -> None:
        kept = self._held[len(self._held) - keep :]
        for publication in self._held[: len(self._held) - keep]:
            if publication.users:
                kept.append(publication)
                continue
            for folder in (publication.snapshot.folder, *publication.patches):
                shutil.rmtree(folder, ignore_errors=True)
        self._held = sorted(kept, key=self._held.index)


def snapshot_problem(snapshot: Snapshot, version: int, canary: Canary, nodes: NodesConfig) -> str | None:
    """Why this snapshot cannot be published, or None."""
    if snapshot.version != version:
        return f"the snapshot is of version {snapshot.version}, not {version}"
    if len(snapshot.canary_logprobs) != len(canary.token_ids) - 1:
        return f"the snapshot has {len(snapshot.canary_logprobs)} canary log-probabilities"
    if len(snapshot.greedy_ids) != len(snapshot.greedy_logprobs):
        return "the snapshot's greedy answer has not one log-probability for each token"
    files = list(snapshot.folder.iterdir()) if snapshot.folder.is_dir() else []
    if not files and version > 0:
        return f"the snapshot's folder {snapshot.folder} has no files"
    size = sum(one.stat().st_size for one in files)
    if size > nodes.max_weights_bytes:
        return (
            f"version {version} has {size} bytes, more than max_weights_bytes {nodes.max_weights_bytes}; raise it in "
            "nodes.yaml, or train an adapter"
        )
    return None


async def _all_or_none(work: list[Coroutine[Any, Any, None]]) -> None:
    """All at once; the first error ends the others too, and is the one that is raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _files_of(folder: Path) -> dict[str, WeightFile]:
    files = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.name] = WeightFile(bytes=path.stat().st_size, sha256=digest)
    return files


def _patch_maker() -> Any:
    """`cluster.delta.make_patch`, loaded when it is first needed: adapters never do, and numpy is not free."""
    try:
        return importlib.import_module("cluster.delta").make_patch
    except (ImportError, AttributeError):
        return None

"""The weights that a worker holds, a folder for each version.

Invariant: a version is held whole or not at all. Its files arrive under other names and are hashed on the way; a file
takes its name when its bytes and sha256 are those of the manifest, and the folder takes its place when every file is
there and `cluster.weight_check` has passed. What is being sampled from, and the version before it, are never removed.
Two runs may number their versions alike, so a folder's name carries its manifest's hash too.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.refusal import not_found, not_now, not_valid, too_large
from cluster.weight_check import WeightCheck, check_names
from cluster.wire import Manifest, Stored
from mlx_sumrl.errors import UserError

PIECE = 1 << 21
"""Bytes hashed and written at once, in a thread of their own."""
MOST_ARRIVING = 3
"""Versions on their way at once; one more, and the lowest of them is given up."""
OWN_FOLDER = re.compile(r"(\.arriving-|\.removed-|\.rebuilt-)?\d{1,16}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Weights:
    """What an engine samples from."""

    version: int
    kind: Literal["none", "adapter", "full"]
    """``none``: the model as the worker was started with."""
    folder: Path | None = None
    """Of an adapter, or of full weights with the model's own config and tokenizer beside them."""


BASE = Weights(0, "none")


@dataclass(slots=True)
class _Arriving:
    manifest: Manifest
    folder: Path
    arrived: set[str]
    taking_in: bool = False

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(sorted(self.manifest.files.keys() - self.arrived))


class WeightStore:
    """Versions in folders below one folder, which is the store's alone."""

    def __init__(self, folder: Path, check: WeightCheck, max_bytes: int) -> None:
        """Starts empty: what an earlier worker left there may be of another run, and is removed."""
        self._folder = folder
        self._check = check
        self._max_bytes = max_bytes
        self._arriving: dict[int, _Arriving] = {}
        self._held: dict[int, tuple[Manifest, Weights]] = {}
        self._in_use: tuple[Weights, ...] = (BASE,)
        self.bytes_received = 0
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if OWN_FOLDER.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def holds(self) -> tuple[int, ...]:
        """Versions that can be activated, in order."""
        return (0, *sorted(self._held))

    def weights(self, version: int) -> Weights:
        """Raises `Refusal` 404 for a version that was never announced, 409 for one that is not whole yet."""
        if version == 0:
            return BASE
        if version in self._held:
            return self._held[version][1]
        if version in self._arriving:
            raise not_now(f"version {version} has not arrived whole; complete it first")
        raise not_found(f"version {version} is not held; these are: {list(self.holds())}")

    def announce(self, version: int, manifest: Manifest) -> Stored:
        """What is about to be sent. The same manifest again says how far it has come; another one starts anew.

        Raises `Refusal` 409 where a delta's base is not held, 413 for more bytes than are taken, 422 for names.
        """
        if version == 0:
            raise not_valid("version 0 is the model that the worker was started with; begin at 1")
        held = self._held.get(version)
        if held is not None and held[0] == manifest:
            return Stored(version=version, missing=(), complete=True)
        arriving = self._arriving.get(version)
        if arriving is not None and arriving.manifest == manifest:
            return Stored(version=version, missing=arriving.missing, complete=False)
        self._check_manifest(manifest)
        if arriving is not None:
            self._give_up(version)
        if held is not None:  # of another run: see the invariant
            del self._held[version]
            self._remove(held[1])
        while len(self._arriving) >= MOST_ARRIVING:
            self._give_up(min(self._arriving))
        folder = self._folder / f".arriving-{_folder_name(version, manifest)}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self._arriving[version] = arriving = _Arriving(manifest, folder, set())
        return Stored(version=version, missing=arriving.missing, complete=False)

    async def receive(
        self, version: int, name: str, body: AsyncIterator[bytes], length: int | None
    ) -> Stored:
        """One file. ``length`` is what the sender says it is, so that a wrong one is refused before it is read.

        Raises `Refusal` 404 for a file of no manifest, 413 for more bytes than the manifest says, 422 for fewer or
        for another sha256; nothing of it is kept then.
        """
        arriving = self._expected(version)
        expected = arriving.manifest.files.get(name)
        if expected is None:
            raise not_found(f"version {version} has no file {name!a:.130}; announce it in its manifest")
        if length is not None and length > expected.bytes:
            raise too_large(f"{name} has {length} bytes and its manifest says {expected.bytes}")
        part = arriving.folder / f".part-{uuid.uuid4().hex}"
        try:
            size, sha256 = await self._write(part, body, name, expected.bytes)
            if size < expected.bytes:
                raise not_valid(
                    f"{name} ended after {size} bytes and its manifest says {expected.bytes}; send it again"
                )
            if sha256 != expected.sha256:
                raise not_valid(f"{name} does not have the sha256 of its manifest; send it again")
            if self._arriving.get(version) is not arriving:
                raise not_now(f"version {version} was announced anew meanwhile; ask what is missing")
            os.replace(part, arriving.folder / name)
        except OSError as error:
            raise too_large(f"{name} cannot be written on the worker's disk ({error.strerror})") from None
        finally:
            part.unlink(missing_ok=True)
        arriving.arrived.add(name)
        return Stored(version=version, missing=arriving.missing, complete=False)

    async def complete(self, version: int) -> Stored:
        """Check all of it and take it in. Again for a version that is held, it changes nothing.

        Raises `Refusal` 409 while files are missing or the base is gone, 422 for what is not weights of this model.
        """
        if version in self._held and version not in self._arriving:
            return Stored(version=version, missing=(), complete=True)
        arriving = self._expected(version)
        if arriving.missing:
            raise not_now(
                f"{len(arriving.missing)} files of version {version} are missing: {arriving.missing[0]}"
            )
        arriving.taking_in = True
        try:
            weights = await asyncio.to_thread(self._take_in, version, arriving)
        except OSError as error:
            self._arriving.pop(version, None)
            shutil.rmtree(arriving.folder, ignore_errors=True)
            raise not_now(
                f"version {version} cannot be kept on the worker's disk ({error.strerror}); announce it again"
            ) from None
        except BaseException:
            self._arriving.pop(version, None)  # what failed its check is not worth keeping
            shutil.rmtree(arriving.folder, ignore_errors=True)
            raise
        self._arriving.pop(version, None)
        self._held[version] = (arriving.manifest, weights)
        return Stored(version=version, missing=(), complete=True)

    def use(self, active: Weights, previous: Weights) -> None:
        """From now on ``active`` is sampled from; versions below it go, but ``previous``."""
        self._in_use = (active, previous)
        kept = {active.version, previous.version}
        for version in [one for one in self._held if one < active.version and one not in kept]:
            self._remove(self._held.pop(version)[1])
        held = {weights.folder for _, weights in self._held.values()} | {one.folder for one in self._in_use}
        for path in self._folder.iterdir():  # of an earlier run with the same numbers, in use until now
            if OWN_FOLDER.fullmatch(path.name) and not path.name.startswith(".") and path not in held:
                shutil.rmtree(path, ignore_errors=True)

    def _check_manifest(self, manifest: Manifest) -> None:
        check_names(manifest.kind, manifest.files)
        total = sum(file.bytes for file in manifest.files.values())
        if total > self._max_bytes:
            raise too_large(
                f"{total} bytes of weights are more than the {self._max_bytes} that this worker takes; "
                "start it with a larger --max-weights-gib"
            )
        free = shutil.disk_usage(self._folder).free
        if total > free:
            raise too_large(
                f"{total} bytes of weights do not fit on the worker's disk, which has {free} free"
            )
        if (manifest.kind == "delta") != (manifest.base is not None):
            raise not_valid("a delta names its base, and nothing else has one")
        if manifest.base is not None:
            self._full_folder(manifest.base)

    def _full_folder(self, version: int) -> Path:
        """The folder of held full weights, the model's own for 0."""
        if version == 0:
            return self._check.model
        held = self._held.get(version)
        if held is None or held[1].kind != "full" or held[1].folder is None:
            raise not_now(f"the base {version} of the delta is not held as full weights; send whole weights")
        return held[1].folder

    def _expected(self, version: int) -> _Arriving:
        if version not in self._arriving:
            raise not_found(f"version {version} was not announced; post its manifest first")
        if self._arriving[version].taking_in:
            raise not_now(f"version {version} is being checked; wait for the answer to its completion")
        return self._arriving[version]

    async def _write(self, part: Path, body: AsyncIterator[bytes], name: str, most: int) -> tuple[int, str]:
        """Stream to a file; its bytes and sha256."""
        digest, size, held = hashlib.sha256(), 0, bytearray()
        with part.open("xb") as file:

            def put(piece: bytes) -> None:
                digest.update(piece)
                file.write(piece)

            async for chunk in body:
                size += len(chunk)
                self.bytes_received += len(chunk)
                if size > most:
                    raise too_large(f"{name} has more than the {most} bytes that its manifest says")
                held += chunk
                if len(held) >= PIECE:
                    await asyncio.to_thread(put, bytes(held))
                    held.clear()
            await asyncio.to_thread(put, bytes(held))
        return size, digest.hexdigest()

    def _take_in(self, version: int, arriving: _Arriving) -> Weights:
        """Runs in a thread: checks, rebuilds, renames."""
        manifest, name = arriving.manifest, _folder_name(version, arriving.manifest)
        whole = arriving.folder
        if manifest.kind == "adapter":
            self._check.adapter(whole)
        else:
            if manifest.base is not None:
                whole = self._folder / f".rebuilt-{name}"
                self._rebuild(manifest.base, arriving.folder, whole)
            self._check.full(whole)
            self._check.complete_folder(whole)
        final = self._folder / name
        if final.exists():  # the same manifest as one that is in use: the same bytes
            shutil.rmtree(whole, ignore_errors=True)
        else:
            os.replace(whole, final)
        if whole != arriving.folder:
            shutil.rmtree(arriving.folder, ignore_errors=True)
        return Weights(version, "adapter" if manifest.kind == "adapter" else "full", final)

    def _rebuild(self, base: int, patch: Path, out: Path) -> None:
        try:
            from cluster.delta import rebuild  # type: ignore[import-not-found]
        except ModuleNotFoundError:
            raise not_valid("this worker takes no deltas; send whole weights") from None
        shutil.rmtree(out, ignore_errors=True)
        try:
            rebuild(self._full_folder(base), patch, out)
        except (UserError, ValueError, OSError) as error:
            shutil.rmtree(out, ignore_errors=True)
            raise not_valid(f"the delta on version {base} cannot be taken in: {error}") from None

    def _give_up(self, version: int) -> None:
        arriving = self._arriving[version]
        if arriving.taking_in:
            raise not_now(f"version {version} is being checked; wait for the answer to its completion")
        del self._arriving[version]
        shutil.rmtree(arriving.folder, ignore_errors=True)

    def _remove(self, weights: Weights) -> None:
        if weights.folder is None or any(weights.folder == one.folder for one in self._in_use):
            return
        gone = weights.folder.with_name(f".removed-{weights.folder.name}")
        os.replace(weights.folder, gone)
        shutil.rmtree(gone, ignore_errors=True)


def _folder_name(version: int, manifest: Manifest) -> str:
    return f"{version}-{hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()[:12]}"

"""The tensors of a folder of safetensors, found by name and read in pieces; and the fingerprint of all of them.

Invariant: a fingerprint depends on every tensor's name, type, shape and bytes, and on nothing else: not on how many
files hold them, nor in which order.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.safetensors_header import BITS, HeaderError, TensorEntry, read_header
from mlx_sumrl.errors import UserError

CHUNK = 1 << 21
"""Values that are in memory at once: 4 MB of bfloat16."""
Values = npt.NDArray[np.unsignedinteger]
"""Bit patterns [n] of a tensor's values, whatever they mean."""


def width_of(dtype: str) -> int:
    """Bytes of a value."""
    return BITS[dtype] // 8


def bits_type(dtype: str) -> np.dtype[np.unsignedinteger]:
    """The unsigned type of the same width, little-endian as safetensors are."""
    return np.dtype(f"<u{width_of(dtype)}")


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is."""

    file: Path
    offset: int
    """Bytes from the start of the file."""
    dtype: str
    """As a safetensors header calls it."""
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Values."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """All of it."""
        return self.size * width_of(self.dtype)

    def is_like(self, other: StoredTensor | None) -> bool:
        """Whether the other one has the same type and shape."""
        return other is not None and (self.dtype, self.shape) == (other.dtype, other.shape)

    def chunks(self, length: int = CHUNK) -> Iterator[Values]:
        """Its values from first to last, ``length`` at a time, each piece the caller's own."""
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.offset)
            for start in range(0, self.size, length):
                count = min(length, self.size - start)
                values = np.fromfile(stream, bits_type(self.dtype), count)
                if len(values) < count:
                    raise UserError(
                        f"{self.file} has become shorter while it was read; leave weights as they are"
                    )
                yield values


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a folder's safetensors by name. Raises `UserError`."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        raise UserError(f"{folder} has no safetensors; name a folder with whole weights")
    found: dict[str, StoredTensor] = {}
    for file in files:
        for name, entry in entries_of(file).items():
            if name in found:
                raise UserError(
                    f"{name} is in {found[name].file.name} and in {file.name} of {folder}; keep one"
                )
            found[name] = StoredTensor(file, entry.begin, entry.dtype, entry.shape)
    return found


def entries_of(file: Path) -> dict[str, TensorEntry]:
    """As `read_header`, in the file's order and with offsets from the start of the file. Raises `UserError`."""
    try:
        entries = read_header(file)
    except HeaderError as error:
        raise UserError(f"{error}; write the weights again") from None
    start = file.stat().st_size - sum(entry.end - entry.begin for entry in entries.values())
    ordered = sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end))
    return {
        name: TensorEntry(entry.dtype, entry.shape, start + entry.begin, start + entry.end)
        for name, entry in ordered
    }


class InTurn(AbstractContextManager["InTurn"]):
    """Calls made one after the other by a thread of its own, beside whatever else is done; few at a time wait."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._pending: deque[Future[Any]] = deque()

    def do(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Have it called soon. Raises what an earlier one raised."""
        self._pending.append(self._thread.submit(work, *arguments))
        while len(self._pending) > 3:  # or all of the weights would wait here
            self._pending.popleft().result()

    def finish(self) -> None:
        """Wait until all is done. Raises what one of them raised."""
        while self._pending:
            self._pending.popleft().result()

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)


class Fingerprint(InTurn):
    """sha256 over (name, type, shape, bytes) of all tensors by name.

    Tensors come sorted by name; a piece that was handed over is not written to any more.
    """

    def __init__(self) -> None:
        super().__init__()
        self._digest = hashlib.sha256()

    def begin(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        """The next tensor."""
        self.do(self._digest.update, json.dumps([name, dtype, list(shape)]).encode() + b"\n")

    def add(self, values: Values) -> None:
        """A piece of it."""
        self.do(self._digest.update, values.data)

    def hexdigest(self) -> str:
        """Of everything that was added."""
        self.finish()
        return self._digest.hexdigest()


def fingerprint_of(tensors: Mapping[str, StoredTensor]) -> str:
    """The fingerprint of these tensors, read from their files. Raises `UserError`."""
    fingerprint = Fingerprint()
    with fingerprint:
        for name, tensor in sorted(tensors.items()):
            fingerprint.begin(name, tensor.dtype, tensor.shape)
            for values in tensor.chunks():
                fingerprint.add(values)
        return fingerprint.hexdigest()


def weights_fingerprint(folder: Path) -> str:
    """Of all weights in a folder: sha256 over (name, type, shape, bytes), sorted by name. Raises `UserError`."""
    return fingerprint_of(stored_tensors(folder))

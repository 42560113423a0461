"""What a safetensors file says of itself, checked before anything loads it.

Invariant: a file that passes has exactly one header of JSON, and its tensors' byte ranges lie inside of the file,
do not overlap, leave no gap, and are as long as their dtype and shape ask for: loading it can read nothing else.
Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
}
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
MOST_DIMENSIONS = 8


class HeaderError(ValueError):
    """The file is not what it says; the message names the file and what is wrong."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Bytes from the start of the data."""
    end: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a file by name. Raises `HeaderError` for one that lies."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise HeaderError(f"{path.name} has {size} bytes; a safetensors file has at least 8")
        length = int.from_bytes(prefix, "little")
        if not 2 <= length <= min(LONGEST_HEADER, size - 8):
            raise HeaderError(f"{path.name} announces a header of {length} bytes in a file of {size}")
        text = file.read(length)
    try:
        header: Any = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"the header of {path.name} is not JSON ({type(error).__name__})") from None
    if not isinstance(header, dict):
        raise HeaderError(f"the header of {path.name} is not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError(f"the metadata of {path.name} is not text by name")
    entries = {name: _entry(path.name, name, value) for name, value in header.items()}
    _check_ranges(path.name, entries, size - 8 - length)
    return entries


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # two readers could take different ones
        raise ValueError("a name is there twice")
    return found


def _entry(file: str, name: str, value: Any) -> TensorEntry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"{file}: {name!a:.100} does not have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise HeaderError(f"{file}: {name!a:.100} has the unknown dtype {dtype!a:.40}")
    if not _sizes(shape) or len(shape) > MOST_DIMENSIONS:
        raise HeaderError(f"{file}: {name!a:.100} has no valid shape")
    if not _sizes(offsets) or len(offsets) != 2:
        raise HeaderError(f"{file}: {name!a:.100} has no valid data_offsets")
    begin, end = offsets
    expected = math.prod(shape) * BITS[dtype] // 8
    if end - begin != expected:
        raise HeaderError(
            f"{file}: {name!a:.100} has {end - begin} bytes where {dtype} {shape} takes {expected}"
        )
    return TensorEntry(dtype, tuple(shape), begin, end)


def _sizes(value: Any) -> bool:
    """Whether it is a list of whole numbers that a file can have."""
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 1 << 50 for one in value)


def _check_ranges(file: str, entries: dict[str, TensorEntry], size: int) -> None:
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            raise HeaderError(f"{file}: {name!a:.100} begins at {entry.begin}, where {at} was expected")
        at = entry.end
    if at != size:
        raise HeaderError(f"{file}: the tensors take {at} bytes and the file has {size} for them")

"""JSON and JSON lines that are valid at any moment. Never imports mlx.

Invariant: a file is replaced whole or not at all (written beside, synced, then renamed), and a number that is
not finite is written as null, since JSON has no NaN.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel


def json_ready(value: Any) -> Any:
    """Plain JSON values: arrays as lists, paths as text, and null for a number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): json_ready(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(below) for below in value]
    if isinstance(value, set | frozenset):
        return sorted(json_ready(below) for below in value)
    if isinstance(value, BaseModel):
        return json_ready(value.model_dump(mode="json"))
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and mlx arrays and their scalars
        return json_ready(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def encoded(content: Any, indent: int | None = None) -> bytes:
    """``content`` as one JSON line, or indented, with a newline at its end."""
    ready = json_ready(content)
    try:
        text = json.dumps(ready, allow_nan=False, ensure_ascii=False, indent=indent).encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair, which data may hold and UTF-8 may not
        text = json.dumps(ready, allow_nan=False, ensure_ascii=True, indent=indent).encode("ascii")
    return text + b"\n"


def rows(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Each line with what it says; None for one that is torn."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            row = None
            with contextlib.suppress(ValueError):
                row = json.loads(line) if line.endswith(b"\n") else None
            yield line, row if isinstance(row, dict) else None


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[IO[bytes]]:
    """A file beside ``target`` that takes its place, once it is whole and synced."""
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def write_json(target: Path, content: Any) -> None:
    """Write a JSON file that is complete or not there; folders on the way are made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as file:
        file.write(encoded(content, indent=2))

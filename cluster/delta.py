"""Whole weights as what changed since a version that the other side has.

A patch is one file: a mark, the length of a header, the header as JSON (the files to be made with their tensors in
order, both fingerprints), then for every tensor, by name, a record for each `CHUNK` of its values
(`cluster.changed_values`), its length before it.

Invariant: `rebuild` makes a whole folder with exactly the weights that `make_patch` was given, or none and raises;
what it believes of a patch is only what it has checked, and however large weights are, either side holds a few
pieces of one tensor.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import IO, Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cluster.changed_values import NotAPatchError, decoded, encoded
from cluster.safetensors_header import BITS, LONGEST_HEADER
from cluster.weight_files import (
    CHUNK,
    Fingerprint,
    InTurn,
    StoredTensor,
    Values,
    bits_type,
    entries_of,
    fingerprint_of,
    stored_tensors,
    width_of,
)
from cluster.wire import FileName, Sha256
from mlx_sumrl.errors import UserError

PATCH = "weights.delta"
"""Name of the one file of a patch."""
MARK = b"sumrl-delta-1\n\0\0"
LENGTH = struct.Struct("<Q")
RECORD = struct.Struct("<I")
PLAIN_ENDINGS = {".json", ".jinja", ".txt", ".model", ".md"}
"""Of files that go along from the base: config, tokenizer, chat template; never weights in another form."""
INDEX = "model.safetensors.index.json"
Size = Annotated[int, Field(ge=0, lt=1 << 50)]


class PatchError(UserError):
    """A patch that cannot be applied: damaged, hostile, or made for another base."""


@dataclass(frozen=True)
class PatchSummary:
    """What `make_patch` made."""

    bytes: int
    """Of the patch."""
    full_bytes: int
    """Of the weights, whole. Where a patch is no smaller, send those."""
    changed: float
    """Share of all values that are not as they were."""
    fingerprint: str
    """Of the new weights; see `cluster.weight_files`."""


class Strict(BaseModel):
    """Typed, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Tensor(Strict):
    """One of a file."""

    name: str = Field(min_length=1, max_length=1000)
    dtype: str
    shape: tuple[Size, ...] = Field(max_length=8)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dtype not in BITS or self.name == "__metadata__":
            raise ValueError("a tensor of no type that there is")
        return self


class MadeFile(Strict):
    """A safetensors file to be made."""

    metadata: dict[str, str]
    tensors: tuple[Tensor, ...]
    """In the order of their bytes."""


class Header(Strict):
    """What a patch says of itself."""

    base: Sha256
    new: Sha256
    chunk: int = Field(default=CHUNK, ge=CHUNK, le=CHUNK)
    files: dict[FileName, MadeFile] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(name.endswith(".safetensors") for name in self.files):
            raise ValueError("weights in a file that is no safetensors")
        names = [tensor.name for file in self.files.values() for tensor in file.tensors]
        if len(set(names)) < len(names):
            raise ValueError("a tensor is there twice")
        return self


def make_patch(base: Path, new: Path, out: Path) -> PatchSummary:
    """Write what turns the weights of ``base`` into those of ``new`` as `PATCH` into the folder ``out``.

    Raises `UserError` for a folder without whole safetensors.
    """
    old, wanted = stored_tensors(base), stored_tensors(new)
    files = {file.name: _made_file(file) for file in sorted(new.glob("*.safetensors"))}
    out.mkdir(parents=True, exist_ok=True)
    unfinished = out / f".unfinished-{PATCH}"
    changed = 0
    with ExitStack() as stack:
        old_print, new_print = Fingerprint(), Fingerprint()
        stack.enter_context(old_print)
        stack.enter_context(new_print)
        stream = stack.enter_context(unfinished.open("wb"))
        # Both fingerprints are known at the end, and as long as this stands for.
        _write_header(stream, Header(base="0" * 64, new="0" * 64, files=files))
        for name in sorted(old.keys() | wanted.keys()):
            before, after = old.get(name), wanted.get(name)
            for print_, tensor in ((old_print, before), (new_print, after)):
                if tensor is not None:
                    print_.begin(name, tensor.dtype, tensor.shape)
            for was, now in _side_by_side(before, after):
                if was is not None:
                    old_print.add(was)
                if now is not None and after is not None:
                    new_print.add(now)
                    record, count = encoded(was if after.is_like(before) else None, now)
                    changed += count
                    stream.write(RECORD.pack(len(record)))
                    stream.write(record)
        fingerprint = new_print.hexdigest()
        stream.seek(0)
        _write_header(stream, Header(base=old_print.hexdigest(), new=fingerprint, files=files))
    os.replace(unfinished, out / PATCH)
    values = sum(tensor.size for tensor in wanted.values())
    return PatchSummary(
        bytes=(out / PATCH).stat().st_size,
        full_bytes=sum((new / name).stat().st_size for name in files),
        changed=changed / max(values, 1),
        fingerprint=fingerprint,
    )


def rebuild(base: Path, patch: Path, out: Path) -> None:
    """Make the folder ``out``: the weights that ``patch`` turns those of ``base`` into, and the base's other files.

    ``patch`` is the folder that `make_patch` wrote to. Raises `PatchError`, and `UserError` for a base without whole
    weights; ``out`` is then not there.
    """
    file = patch / PATCH
    if not file.is_file():
        raise PatchError(f"{patch} has no {PATCH}; send the patch again, or whole weights")
    if out.exists():
        raise PatchError(f"{out} is there already; name a new folder for the rebuilt weights")
    old = stored_tensors(base)
    unfinished = out.with_name(f".unfinished-{out.name}-{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    header = None
    try:
        with file.open("rb") as stream:
            header = _read_header(stream)
            _check_sizes(header, old, file.stat().st_size)
            if _rebuild_weights(header, stream, old, unfinished) != header.new:
                raise NotAPatchError("what it makes is not what it was made from")
        _write_index(header, unfinished)
        _copy_others(base, unfinished)
        os.replace(unfinished, out)
    except NotAPatchError as error:
        # Whether the base is the right one shows in what is made of it; asked for only to say what is wrong.
        if header is not None and fingerprint_of(old) != header.base:
            raise PatchError(
                f"the patch {file} was made for other weights than those in {base}; send whole weights"
            ) from None
        raise PatchError(
            f"the patch {file} cannot be applied: {error}; send it again, or whole weights"
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _rebuild_weights(header: Header, patch: IO[bytes], old: Mapping[str, StoredTensor], folder: Path) -> str:
    """Write all files of a patch; the fingerprint of what was written."""
    with ExitStack() as stack:
        fingerprint, writing = Fingerprint(), InTurn()
        places: dict[str, StoredTensor] = {}
        streams: dict[Path, IO[bytes]] = {}
        for name, made in header.files.items():
            path = folder / name
            streams[path] = stack.enter_context(path.open("wb"))
            for tensor, offset in _begin_file(streams[path], made):
                places[tensor.name] = StoredTensor(path, offset, tensor.dtype, tensor.shape)
        stack.enter_context(fingerprint)
        stack.enter_context(writing)  # ends before the files are closed
        for name, place in sorted(places.items()):
            dtype = bits_type(place.dtype)
            fingerprint.begin(name, place.dtype, place.shape)
            stream = streams[place.file]
            writing.do(stream.seek, place.offset)
            before = old.get(name)
            pieces = before.chunks() if before is not None and place.is_like(before) else None
            for start in range(0, place.size, CHUNK):
                size = min(CHUNK, place.size - start)
                record = _read_record(patch, size * dtype.itemsize)
                values = decoded(next(pieces) if pieces else None, record, size, dtype)
                fingerprint.add(values)
                writing.do(stream.write, values.data)
        if patch.read(1):
            raise NotAPatchError("there are bytes after its end")
        writing.finish()
        return fingerprint.hexdigest()


def _side_by_side(
    before: StoredTensor | None, after: StoredTensor | None
) -> Iterator[tuple[Values | None, Values | None]]:
    """Pieces of the same tensor before and after; of two that are not alike one after the other."""
    if before is not None and after is not None and after.is_like(before):
        yield from zip(before.chunks(), after.chunks(), strict=True)
        return
    yield from ((values, None) for values in (before.chunks() if before else ()))
    yield from ((None, values) for values in (after.chunks() if after else ()))


def _made_file(file: Path) -> MadeFile:
    tensors = tuple(
        Tensor(name=name, dtype=entry.dtype, shape=entry.shape) for name, entry in entries_of(file).items()
    )
    with file.open("rb") as stream:
        header = json.loads(stream.read(LENGTH.unpack(stream.read(LENGTH.size))[0]))
    return MadeFile(metadata=header.get("__metadata__", {}), tensors=tensors)


def _begin_file(stream: IO[bytes], made: MadeFile) -> Iterator[tuple[Tensor, int]]:
    """Write a safetensors header; each tensor with its place in the file."""
    header: dict[str, object] = {"__metadata__": made.metadata} if made.metadata else {}
    ends = list(accumulate((_bytes_of(tensor) for tensor in made.tensors), initial=0))
    for tensor, offsets in zip(made.tensors, pairwise(ends), strict=True):
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(LENGTH.pack(len(text)) + text)
    for tensor, end in zip(made.tensors, ends, strict=False):
        yield tensor, LENGTH.size + len(text) + end


def _bytes_of(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * width_of(tensor.dtype)


def _write_header(stream: IO[bytes], header: Header) -> None:
    text = header.model_dump_json().encode()
    stream.write(MARK + LENGTH.pack(len(text)) + text)


def _read_header(stream: IO[bytes]) -> Header:
    if stream.read(len(MARK)) != MARK:
        raise NotAPatchError("it does not begin as one")
    length = stream.read(LENGTH.size)
    if len(length) < LENGTH.size or LENGTH.unpack(length)[0] > LONGEST_HEADER:
        raise NotAPatchError("its header is cut short, or longer than any")
    try:
        return Header.model_validate_json(stream.read(LENGTH.unpack(length)[0]))
    except ValidationError as error:
        raise NotAPatchError(f"its header is not one ({error.errors()[0]['msg']})") from None


def _check_sizes(header: Header, old: Mapping[str, StoredTensor], patch_bytes: int) -> None:
    """Before a byte is written: what is not made from the base has to be in the patch."""
    own = 0
    for file in header.files.values():
        for tensor in file.tensors:
            before = old.get(tensor.name)
            if before is None or (tensor.dtype, tensor.shape) != (before.dtype, before.shape):
                own += _bytes_of(tensor)
    if own > patch_bytes:
        raise NotAPatchError(f"it has {patch_bytes} bytes for {own} that the base does not have")


def _read_record(stream: IO[bytes], whole: int) -> bytes:
    head = stream.read(RECORD.size)
    if len(head) < RECORD.size:
        raise NotAPatchError("it is cut short")
    (length,) = RECORD.unpack(head)
    if not 1 <= length <= 1 + whole:
        raise NotAPatchError(f"a record of {length} bytes for {whole}")
    record = stream.read(length)
    if len(record) < length:
        raise NotAPatchError("it is cut short")
    return record


def _write_index(header: Header, folder: Path) -> None:
    """Which file has what, as Hugging Face asks for where there are several."""
    if len(header.files) == 1:
        return
    tensors = {tensor.name: (name, tensor) for name, file in header.files.items() for tensor in file.tensors}
    index = {
        "metadata": {"total_size": sum(_bytes_of(tensor) for _, tensor in tensors.values())},
        "weight_map": {name: file for name, (file, _) in sorted(tensors.items())},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _copy_others(base: Path, folder: Path) -> None:
    for path in sorted(base.iterdir()):
        plain = path.suffix in PLAIN_ENDINGS and not path.name.startswith(".") and path.name != INDEX
        if plain and path.is_file():
            shutil.copyfile(path, folder / path.name)

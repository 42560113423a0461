"""Where rows come from: a .jsonl, .csv or .parquet file, or a Hugging Face dataset.

Invariant: every record of the source is one `Row`. A record that cannot be read is a row too, with `broken`
saying why, so that whoever counts rows counts it. Blank lines are no records.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from mlx_sumrl.errors import UserError

SUFFIXES = (".jsonl", ".csv", ".parquet")
# Names with these endings are files too, only not ones that are read: without them "posts.json" would be
# looked for on the hub, which takes half a minute to answer nothing.
_OTHER_FILES = (".json", ".tsv", ".txt", ".gz", ".zip", ".zst", ".xlsx", ".arrow", ".yaml", ".yml")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a source."""

    id: str
    """``file.jsonl:17``: the file and the line it starts at (.parquet and hub: the row), counted from 1."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Column -> value; empty for a broken row."""
    broken: str | None = None
    """Why the record could not be read."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one source, in its order."""

    name: str
    """The file or dataset, as the user named it."""
    rows: list[Row]

    @property
    def columns(self) -> list[str]:
        """Every column that some readable row has, in order of first appearance."""
        return list(dict.fromkeys(column for row in self.rows for column in row.fields))


def read_rows(
    name: str,
    split: str = "train",
    limit: int | None = None,
    *,
    config_name: str | None = None,
    revision: str | None = None,
    folder: str | None = None,
) -> Rows:
    """Read the first `limit` rows (all: None; the last: below 0) of a file, or of `split` of a Hugging Face dataset.

    `name` is a file when it ends in a data file's suffix or is written like a path; `owner/name` without a
    suffix is a dataset. Broken records count towards `limit`. Of a dataset, `config_name` is its configuration
    (`3.0.0`), `revision` a branch or commit, `folder` the folder in it that holds the splits.

    Raises:
        UserError: no such file, a kind of file that is not read, a file that cannot be read as a whole, or a
            dataset that cannot be had.
    """
    path = Path(name).expanduser()
    suffix = path.suffix.lower()
    if path.is_file() and suffix not in SUFFIXES:
        raise UserError(f"{name} is not a {_kinds()} file: convert it to one of these")
    if not path.exists() and is_path(name):
        raise UserError(
            f"there is no file {name} (looked in {path.absolute().parent}): correct the path; "
            f"{_kinds()} files are read, and a Hugging Face dataset is named owner/name"
        )
    if not path.is_file():
        place = {"name": config_name, "revision": revision, "data_dir": folder}
        return Rows(
            name, _read_dataset(name, split, limit, {k: v for k, v in place.items() if v is not None})
        )
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
    try:
        return Rows(name, _limited(readers[suffix](path), limit))
    except OSError as error:
        raise UserError(
            f"{name} cannot be read ({error.strerror or error}): check the file and its rights"
        ) from error


def _limited(rows: Iterator[Row], limit: int | None) -> list[Row]:
    return list(deque(rows, -limit) if limit is not None and limit < 0 else islice(rows, limit))


def rows_from(name: str, records: list[dict[str, Any]], id_column: str = "id") -> Rows:
    """Rows made in memory: `records` are their fields, `id_column` names the one that holds a row's id."""
    return Rows(name, [Row(str(record[id_column]), dict(record)) for record in records])


def _kinds() -> str:
    return f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def is_path(name: str) -> bool:
    """Whether a name that is no file can only have been meant as one."""
    return (
        name.lower().endswith(SUFFIXES + _OTHER_FILES) or _HUB_NAME.fullmatch(name) is None or name[0] == "."
    )


def _read_jsonl(path: Path) -> Iterator[Row]:
    # Bytes, split at "\n" alone: a str would also be split at U+2028, which is legal inside a JSON string.
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            row_id = f"{path.name}:{number}"
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
                yield Row(row_id, broken="the line is not JSON")
                continue
            if isinstance(record, dict):
                yield Row(row_id, record)
            else:
                yield Row(row_id, broken="the line is not a JSON object")


def _read_csv(path: Path) -> Iterator[Row]:
    # A byte that is not UTF-8 becomes a lone surrogate here, and is refused where texts are checked.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        # strict: a stray quotation mark is an error, instead of quietly swallowing the rows after it.
        records = _CsvRecords(file)
        header: list[str] | None = None
        for number, record in records:
            if record == []:
                continue
            row_id = f"{path.name}:{number}"
            if header is None:
                if record is None or len(set(record)) < len(record):
                    raise UserError(
                        f"{path}: its first line is not a header of distinct column names; mend it"
                    )
                header = record
            elif record is None:
                yield Row(row_id, broken="the line is not CSV")
            elif len(record) != len(header):
                yield Row(row_id, broken="the line has more or fewer fields than the header")
            else:
                yield Row(row_id, dict(zip(header, record, strict=True)))


class _CsvRecords:
    """Iterates (line the record starts at, its fields or None where it is no CSV)."""

    def __init__(self, file: Any) -> None:
        self._reader = csv.reader(file, strict=True)

    def __iter__(self) -> Iterator[tuple[int, list[str] | None]]:
        while True:
            number = self._reader.line_num + 1
            # The module's limit of 128 KiB a field is global; a document may be longer.
            limit = csv.field_size_limit(sys.maxsize)
            try:
                record = next(self._reader)
            except StopIteration:
                return
            except csv.Error:
                record = None
            finally:
                csv.field_size_limit(limit)
            yield number, record


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    number += 1
                    yield Row(f"{path.name}:{number}", record)
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path} is not a readable .parquet file ({_first_line(error)}): write it again"
        ) from error


def dataset_splits(name: str, config_name: str | None = None) -> list[str]:
    """Names of the splits of a Hugging Face dataset.

    Raises:
        UserError: the dataset cannot be had.
    """
    from datasets import get_dataset_split_names

    try:
        return list(get_dataset_split_names(name, config_name))
    except Exception as error:  # as in _read_dataset
        raise UserError(
            f"dataset {name!r} cannot be looked up ({type(error).__name__}: {_first_line(error)}): "
            f"check the name, its configuration and the network, or name a {_kinds()} file"
        ) from error


def _read_dataset(name: str, split: str, limit: int | None, place: dict[str, str]) -> list[Row]:
    from datasets import load_dataset  # takes a second to import, and files do without it

    try:
        last = (
            limit is not None and limit < 0
        )  # all are numbered, so that each has the number it has without a limit
        records = load_dataset(name, split=split if limit is None or last else f"{split}[:{limit}]", **place)
        rows = (Row(f"{name}/{split}:{n}", dict(record)) for n, record in enumerate(records, start=1))
        return _limited(rows, limit)
    except Exception as error:  # datasets and the hub client raise dozens of kinds; all mean: no rows
        cause = f"{type(error).__name__}: {_first_line(error)}"
        raise UserError(
            f"dataset {name!r}, split {split!r}, cannot be loaded ({cause}): "
            f"check the name, the split and the network, or name a {_kinds()} file"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")

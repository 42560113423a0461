"""Predictions and references out of files: rows with an id, and values as JSON has them. Never imports mlx.

Invariant: every record of a file is one `Row`, broken or not; a cell of a .csv file, which is all text, becomes the
value that it is the JSON of where its field holds such values.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlx_sumrl.data.answer_schema import NotJsonError, read_json
from mlx_sumrl.data.sources import SUFFIXES, Row, Rows, read_rows
from mlx_sumrl.errors import UserError
from mlx_sumrl.evaluation.structured_fields import FieldKind, as_number, field_kind

KINDS = (".jsonl", ".json", *SUFFIXES[1:])
"""Files that are read."""
_TRUE, _FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no")


class UnreadableError(ValueError):
    """A value that is not of the kind that its field has."""


def read_file(path: Path, option: str) -> Rows:
    """The records of a .jsonl, .json (a list of objects), .csv or .parquet file.

    Raises:
        UserError: there is no such file, it is of another kind, or none of its records can be read; `option` names it.
    """
    if not path.expanduser().is_file():
        raise UserError(f"{option}: there is no file {path}; correct its path")
    if path.suffix.lower() not in KINDS:
        raise UserError(f"{option}: {path} is none of {', '.join(KINDS)}: convert it to one of these")
    rows = _read_json(path, option) if path.suffix.lower() == ".json" else read_rows(str(path))
    if not rows.rows:
        raise UserError(f"{option}: {path} has no rows; name a file that has some")
    if all(row.broken is not None for row in rows.rows):
        raise UserError(
            f"{option}: {path} cannot be read: of all {len(rows.rows)} records, {rows.rows[0].broken} (first "
            f"{rows.rows[0].id}); name a {', '.join(KINDS[:-1])} or {KINDS[-1]} file that is what its name says"
        )
    return rows


def _read_json(path: Path, option: str) -> Rows:
    try:
        content = read_json(path.expanduser().read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{option}: {path} is no JSON ({error}); mend it, or name another file") from error
    if not isinstance(content, list):
        raise UserError(
            f"{option}: {path} holds no list of objects; write one, or a line of JSON for each row"
        )
    rows = [
        Row(f"{path.name}:{number}", record)
        if isinstance(record, dict)
        else Row(f"{path.name}:{number}", broken="the entry is not a JSON object")
        for number, record in enumerate(content, start=1)
    ]
    return Rows(str(path), rows)


def is_text_only(path: Path) -> bool:
    """Whether every value of a file is text."""
    return path.suffix.lower() == ".csv"


def column(fields: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or with dots inside of one (``metadata.item_id``); None where it is not there."""
    if name in fields:
        return fields[name]
    value: Any = fields
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def require(rows: Rows, names: Iterable[str], option: str, way_out: str) -> None:
    """Raises `UserError` for a column that no row has."""
    for name in names:
        if not any(name in row.fields or column(row.fields, name) is not None for row in rows.rows):
            raise UserError(
                f"{option}: {rows.name} has no column {name!r}; its columns are {', '.join(rows.columns)}; {way_out}"
            )


def truth(value: Any) -> bool:
    """A truth value, 0 or 1, or any of them as text.

    Raises:
        UnreadableError: it is something else.
    """
    text = str(value).strip().lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise UnreadableError(f"{value!r} is neither true nor false")


def value_of(cell: str, kind: FieldKind) -> Any:
    """What a cell of text stands for in a field of that kind; None for an empty one, but in a field of texts.

    A list may be written as Python writes it, which is what pandas puts into a .csv file.

    Raises:
        UnreadableError: it is no such value.
    """
    text = cell.strip()
    if kind == "text":
        return cell
    if not text:
        return None
    if kind == "boolean":
        return truth(text)
    if kind == "number":
        return _number(text)
    try:
        value = read_json(text)
    except NotJsonError:
        value = _python_list(text) if kind == "list" else cell
    if kind == "list" and not isinstance(value, list):
        raise UnreadableError(f"{text[:40]!r} is no list")
    return value


def of_kind(value: Any, kind: FieldKind) -> Any:
    """The value itself.

    Raises:
        UnreadableError: it is not of the kind that the references' are; a number has to be finite.
    """
    if kind == "number" and as_number(value) is None:
        raise UnreadableError(f"{str(value)[:40]!r} is no number")
    if kind != "other" and field_kind([value]) != kind:
        raise UnreadableError(f"{str(value)[:40]!r} is no {kind}")
    return value


def columns_as_values(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of text cells -> rows of values: a column all of whose cells are JSON lists, numbers or truth values, empty
    ones aside, holds these; any other holds texts."""
    names = dict.fromkeys(name for row in rows for name in row)
    kinds = {name: _cells_kind([row[name] for row in rows if name in row]) for name in names}
    return [{name: value_of(cell, kinds[name]) for name, cell in row.items()} for row in rows]


def _cells_kind(cells: list[str]) -> FieldKind:
    filled = [cell for cell in cells if cell.strip()]
    for kind in ("list", "boolean", "number") if filled else ():
        try:
            for cell in filled:
                if kind == "boolean" and cell.strip().lower() not in ("true", "false"):
                    raise UnreadableError("1 and 0 are numbers")
                value_of(cell, kind)
        except UnreadableError:
            continue
        return kind
    return "text"


def _number(text: str) -> float | int:
    try:
        number = json.loads(text)
    except (ValueError, RecursionError):
        try:
            number = float(text)
        except ValueError as error:
            raise UnreadableError(f"{text[:40]!r} is no number") from error
    if as_number(number) is None or not math.isfinite(number):
        raise UnreadableError(f"{text[:40]!r} is no number")
    return number  # type: ignore[no-any-return]


def _python_list(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise UnreadableError(f"{text[:40]!r} is no list") from error

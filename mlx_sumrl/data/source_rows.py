"""The rows of a source, in the one form that preparing works on. Never imports mlx.

Invariant: every record of a source either becomes exactly one row or is counted under a reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mlx_sumrl.config.prepare import ReadingConfig, SourceConfig
from mlx_sumrl.data.dates import read_date
from mlx_sumrl.data.declared_sources import DeclaredSource, Layout, declared
from mlx_sumrl.data.prepared_row import OWN_COLUMNS, PreparedRow
from mlx_sumrl.data.source_places import Place, places_of
from mlx_sumrl.data.sources import Row, Rows
from mlx_sumrl.errors import UserError

_UNDECLARED = (Layout(), Layout(messages="messages"))


class _UnusableError(Exception):
    """Why a record cannot be used."""


@dataclass(slots=True)
class SourceRows:
    """What one source gave."""

    name: str
    """As it stands in the rows' `source`."""
    read_from: list[str]
    """Files, or dataset and split."""
    licence: str
    instruction: str
    language: str | None
    records: int = 0
    """Records read."""
    rows: list[PreparedRow] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    """(id, reason) of every record that cannot be used."""


def columns_of(source: SourceConfig, top: ReadingConfig) -> ReadingConfig:
    """The source's own columns over those named for all sources."""
    own = {name: getattr(source, name) for name in ReadingConfig.model_fields}
    return ReadingConfig(**{name: value or getattr(top, name) for name, value in own.items()})


def read_source(source: SourceConfig, top: ReadingConfig) -> SourceRows:
    """Every record of every place of a source; `top` names columns where the source does not.

    Raises:
        UserError: a file or dataset that cannot be had, is empty, or has other columns than it should.
    """
    declaration = declared(source.source)
    columns = columns_of(source, top)
    places = places_of(source, declaration)
    found = SourceRows(
        declaration.name if declaration else _short_name(source.source),
        [str(place) for place in places],
        columns.licence or (declaration.licence if declaration else "none stated"),
        columns.instruction or (declaration.instruction if declaration else ""),
        columns.language or (declaration.language if declaration else None),
    )
    left: dict[str | None, int | None] = {place.split: columns.rows for place in places}
    for place in places:
        limit = left[place.split]
        if limit == 0:
            continue
        rows = _read(place, limit, declaration)
        if not rows.rows:
            raise UserError(f"{rows.name} has no rows; name a source that has some")
        layout = _layout(rows.columns, columns, declaration, rows.name) if rows.columns else None
        for row in rows.rows:
            found.records += 1
            try:
                if row.broken is not None or layout is None:
                    raise _UnusableError(row.broken or "no columns")
                found.rows.append(_row(row, layout, columns, found.name, place))
            except _UnusableError as error:
                found.refused.append((row.id, str(error)))
        if limit is not None:
            left[place.split] = limit - len(rows.rows)
    if not found.rows:
        reasons = sorted({reason for _, reason in found.refused})
        raise UserError(f"no row of {source.source} can be used ({', '.join(reasons)}); mend its rows")
    _without_templates(found.rows)
    return found


def _short_name(source: str) -> str:
    """A file without the folders on the way to it: they are nobody's business but its owner's."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else source


def _read(place: Place, limit: int | None, declaration: DeclaredSource | None) -> Rows:
    try:
        return place.read(limit)
    except UserError as error:
        if declaration is None or place.hub_split is None:
            raise
        raise UserError(f"{error}, as --source {declaration.name} --from FILE") from error


def _layout(
    available: Sequence[str], columns: ReadingConfig, declaration: DeclaredSource | None, file: str
) -> Layout:
    """The first layout that a file is in, once the columns that the user has named are put into it."""
    layouts = [_named(layout, columns) for layout in (declaration.layouts if declaration else _UNDECLARED)]
    layout = next((one for one in layouts if set(one.needed) <= set(available)), None)
    names = ", ".join(available)
    if layout is None:
        missing = " and ".join(repr(name) for name in layouts[0].needed if name not in available)
        way_out = (
            "--messages_column" if layouts[0].messages else "--document_column and --summary_column"
        )  # of the first layout, since that is the one that the user most likely has
        raise UserError(
            f"{file} has no column {missing}; its columns are {names}: name the right ones with {way_out}"
        )
    for option in ("id_column", "date_column", "group_column"):
        column = getattr(columns, option)
        if column is not None and column not in available:
            raise UserError(f"{file} has no column {column!r} ({option}); its columns are {names}")
    for column in columns.keep_columns:
        if column not in available:
            raise UserError(f"{file} has no column {column!r} (keep_columns); its columns are {names}")
    for column in _kept(layout, columns):
        if column in OWN_COLUMNS:
            raise UserError(
                f"column {column!r} of {file} cannot be kept: prepared rows have one of that name; rename it"
            )
    return layout


def _named(layout: Layout, columns: ReadingConfig) -> Layout:
    if columns.messages_column:
        return Layout(messages=columns.messages_column, id=layout.id, keep=layout.keep)
    if columns.document_column or columns.summary_column:
        return replace(
            layout,
            messages=None,
            document=columns.document_column or layout.document,
            summary=columns.summary_column or layout.summary,
            cue="" if columns.document_column else layout.cue,
        )
    return layout


def _kept(layout: Layout, columns: ReadingConfig) -> list[str]:
    """Columns that are written beside the text, each once."""
    named = [columns.date_column, columns.group_column, *columns.keep_columns, *layout.keep]
    return list(dict.fromkeys(name for name in named if name))


def _row(row: Row, layout: Layout, columns: ReadingConfig, source: str, place: Place) -> PreparedRow:
    fields = row.fields
    own_id = _named_value(fields.get(columns.id_column or layout.id or "id"))
    group = _named_value(fields.get(columns.group_column)) if columns.group_column else None
    prepared = PreparedRow(
        id=own_id or row.id,
        document="",
        summary="",
        source=source,
        split=place.split,
        date=read_date(fields.get(columns.date_column)) if columns.date_column else None,
        group=group,
        kept={name: _plain(fields[name]) for name in _kept(layout, columns) if name in fields},
    )
    if layout.messages:
        prepared.messages = _chat(fields.get(layout.messages))
        prepared.document = "\n\n".join(
            turn["content"].strip() for turn in prepared.messages if turn["role"] == "user"
        )
        prepared.summary = prepared.messages[-1]["content"].strip()
    else:
        document = _text(fields.get(layout.document), "document", False).strip()
        prepared.document = document.removesuffix(layout.cue).rstrip() if layout.cue else document
        prepared.summary = _text(fields.get(layout.summary), "summary", layout.first_summary).strip()
    for role, text in (("document", prepared.document), ("summary", prepared.summary)):
        if not any(character.isprintable() and not character.isspace() for character in text):
            raise _UnusableError(f"empty {role}")
    prepared.compared = prepared.document
    return prepared


def _text(value: Any, role: str, first: bool) -> str:
    if isinstance(value, list | tuple):
        if not all(isinstance(part, str) for part in value):
            raise _UnusableError(f"the {role} is not text")
        parts = [part.strip() for part in value if part.strip()]
        value = " ".join(parts[:1] if first else parts)
    if value is None:
        raise _UnusableError(f"no {role}")
    if not isinstance(value, str):
        raise _UnusableError(f"the {role} is not text")
    _check_unicode(value, role)
    return value


def _chat(value: Any) -> list[dict[str, Any]]:
    """A list of turns, each with role and content; a .csv file holds it as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise _UnusableError("the chat is not JSON") from error
    if not isinstance(value, list | tuple) or not value:
        raise _UnusableError("no chat")
    for turn in value:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
            raise _UnusableError("a turn of the chat has no role")
        if not isinstance(turn.get("content"), str):
            raise _UnusableError("a turn of the chat has no text")
        _check_unicode(turn["content"], "chat")
    if value[-1]["role"] != "assistant":
        raise _UnusableError("the chat does not end with an answer")
    return [_plain(turn) for turn in value]


def _check_unicode(text: str, role: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _UnusableError(f"the {role} is not valid Unicode") from error


def _named_value(value: Any) -> str | None:
    """An id or a group as text; None where there is none."""
    return None if value is None or value == "" or value != value else str(value)


def _plain(value: Any) -> Any:
    """Dates and the like of a .parquet file as text, at any depth; JSON has none."""
    if isinstance(value, Mapping):
        return {str(key): _plain(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(below) for below in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _without_templates(rows: Sequence[PreparedRow]) -> None:
    """Chats that all begin and end with the same words would look alike by these words alone."""
    chats = [row for row in rows if row.messages is not None]
    if len(chats) < 2:
        return
    texts = [row.document for row in chats]
    before = _shared_start(texts)
    after = _shared_start([text[before:][::-1] for text in texts])
    for row in chats:
        row.compared = row.document[before : len(row.document) - after] or row.document


def _shared_start(texts: Sequence[str]) -> int:
    """Characters that all texts begin with."""
    first, last = min(texts), max(texts)  # what these two share, all between them share
    return next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))

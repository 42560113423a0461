"""Which summaries are judged: those of evaluations, run folders and files of rows. Never imports mlx.

Invariant: every row of the input is one `JudgedText`; one that cannot be judged says why.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mlx_sumrl.config import JudgeConfig
from mlx_sumrl.data.sources import SUFFIXES, Row, read_rows
from mlx_sumrl.errors import UserError


@dataclass(frozen=True, slots=True)
class JudgedText:
    """A document and what was written about it."""

    id: str
    document: str
    summary: str
    unusable: str | None = None
    """Why it cannot be judged."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The rows of one file."""

    name: str
    """For tables: the file's name without its ending, and the run's before it."""
    path: Path
    texts: tuple[JudgedText, ...]
    content: dict[str, Any] | None
    """What the file says, where it is an evaluation; None for a file of rows."""


def read_judged(paths: Sequence[Path], config: JudgeConfig) -> list[Judged]:
    """What `--evaluation` names.

    Raises `UserError` when a file is missing, is none of the kinds that are read, or holds no row.
    """
    found = [one for path in paths for one in _read(path, config)]
    names = [one.name for one in found]
    for one in found:
        if names.count(one.name) > 1:
            others = ", ".join(str(other.path) for other in found if other.name == one.name)
            raise UserError(f"{others} have the same name: rename one, or judge them one after the other")
    return found


def _read(path: Path, config: JudgeConfig) -> list[Judged]:
    if path.is_dir():
        files = sorted((path / "evaluation").glob("*.json"))
        found = [_evaluation(file, f"{path.resolve().name}-{file.stem}", config) for file in files]
        kept = [one for one in found if one is not None]
        if not kept:
            raise UserError(
                f"{path} has no evaluation with rows in it ({path / 'evaluation'}): name a run's folder"
            )
        return kept
    if path.suffix.lower() in SUFFIXES:
        return [_rows_file(path, config)]
    one = _evaluation(path, path.stem, config)
    if one is None:
        raise UserError(f"{path} holds no rows of summaries: name a file that recipes.evaluate --out wrote")
    return [one]


def _evaluation(path: Path, name: str, config: JudgeConfig) -> Judged | None:
    """None where it is a summary alone, as a run's final.json, or of other rows, as structured answers."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"the evaluation {path} cannot be read ({error.strerror}): correct the path"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"the evaluation {path} is no JSON ({error}): write it again with recipes.evaluate"
        ) from None
    rows = content.get("rows") if isinstance(content, dict) else None
    needed = {"id", "document", "text", "metrics"}
    if (
        not isinstance(rows, list)
        or not rows
        or not all(isinstance(row, dict) and needed <= set(row) for row in rows)
    ):
        return None
    texts = [_text(str(row["id"]), row["document"], row["text"]) for row in rows[: config.rows]]
    return Judged(name, path, tuple(texts), content)


def _rows_file(path: Path, config: JudgeConfig) -> Judged:
    rows = read_rows(str(path), limit=config.rows)
    if not rows.rows:
        raise UserError(f"{path} (--evaluation) has no rows")
    for option in ("document_column", "summary_column"):
        check_column(rows.columns, getattr(config, option), path, option)
    texts = [_of_row(row, config) for row in rows.rows]
    return Judged(path.stem, path, tuple(texts), None)


def _of_row(row: Row, config: JudgeConfig) -> JudgedText:
    if row.broken is not None:
        return JudgedText(row.id, "", "", row.broken)
    name = row.fields.get(config.id_column)
    document, summary = (row.fields.get(one) for one in (config.document_column, config.summary_column))
    return _text(row.id if name is None else str(name), document, summary)


def _text(row_id: str, document: Any, summary: Any) -> JudgedText:
    for what, value in (("document", document), ("summary", summary)):
        if not isinstance(value, str) or not value.strip():
            return JudgedText(row_id, "", "", f"no {what}")
    return JudgedText(row_id, document, summary)


def check_column(columns: Sequence[str], name: str, path: Path, option: str) -> None:
    """Raises `UserError` when a file has no such column."""
    if name not in columns:
        near = get_close_matches(name, columns, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"{path} has no column {name!r} (--{option}); its columns are {', '.join(columns) or 'none'}{hint}"
        )

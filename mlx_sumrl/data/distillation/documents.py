"""Which documents a teacher is asked about: several sources, mixed by weight, each document once.

Invariant: every row read is either one `Document` or counted under a reason, or left over because enough were
taken; the same files, options and seed give the same documents in the same order. Never imports mlx.
"""

from __future__ import annotations

import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from mlx_sumrl.config import DistillConfig, TeacherSourceConfig
from mlx_sumrl.data.sources import Row, Rows, read_rows
from mlx_sumrl.errors import UserError

LanguageOf = Callable[[str], tuple[str, float]]
"""Text -> its language's code and the confidence, 0 to 1, in that."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text to ask about."""

    id: str
    """The row's own name, or its file and line; not always unique."""
    source: str
    """Name of the file, without its folder, or of the dataset."""
    row: str
    """File and line."""
    text: str
    language: str | None
    """Its code, where it was given, or had to be found out and could be."""
    fields: dict[str, Any]
    """The row's columns, for the instruction."""
    order: int
    """Its place among all documents, counted from 0."""


@dataclass(slots=True)
class Plan:
    """The documents, and what became of all other rows."""

    documents: list[Document] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason -> rows."""
    sources: list[dict[str, Any]] = field(default_factory=list)
    """For each source: name, weight, rows, documents taken, and whether it ended before the others."""

    def describe(self) -> str:
        """The account as a sentence for people."""
        text = counted(len(self.documents), "document")
        if len(self.sources) > 1:
            text += f" ({', '.join('{documents} of {name}'.format(**one) for one in self.sources)})"
        if self.left_out:
            text += "; left out: " + ", ".join(f"{n} x {why}" for why, n in self.left_out.most_common())
        return text


class _Unusable(Exception):  # noqa: N818 (it never leaves this file)
    """A row without a document; its message is the reason."""


def plan_documents(
    config: DistillConfig, needed: Sequence[str] = (), language_of: LanguageOf | None = None
) -> Plan:
    """Read the sources and take documents from them.

    `needed` are the columns, besides the document's, that an instruction names. `language_of` finds the language
    of documents whose source does not say it; None: nobody needs it.

    Raises:
        UserError: a source cannot be read, lacks a column, or holds too many rows that cannot be used.
    """
    plan = Plan()
    names = source_names([one.file for one in config.source])
    sources = [
        _Source(one, name, config, needed, index, plan.left_out)
        for index, (one, name) in enumerate(zip(config.source, names, strict=True))
    ]
    taken = [0] * len(sources)
    open_sources = list(range(len(sources)))
    seen: set[str] = set()
    while open_sources and (config.rows is None or len(plan.documents) < config.rows):
        index = next_source(taken, [one.weight for one in config.source], open_sources)
        for row, text in sources[index].rest:
            same = form(text, config.same)
            if same in seen:
                plan.left_out["the same document is there already"] += 1
                continue
            seen.add(same)
            plan.documents.append(sources[index].document(row, text, len(plan.documents), language_of))
            taken[index] += 1
            break
        else:
            open_sources.remove(index)
    for index, (source, count) in enumerate(zip(sources, taken, strict=True)):
        ended = index not in open_sources
        plan.sources.append(
            {
                "name": source.name,
                "weight": source.config.weight,
                "rows": len(source.rows.rows),
                "documents": count,
                "ended": ended,
            }
        )
    if not plan.documents:
        reasons = ", ".join(f"{n} x {why}" for why, n in plan.left_out.most_common())
        raise UserError(
            f"no row of {', '.join(one.file for one in config.source)} can be asked about: {reasons}; mend the rows, "
            "or name another --source or --document_column"
        )
    return plan


def next_source(taken: Sequence[int], weights: Sequence[float], candidates: Sequence[int]) -> int:
    """Which of `candidates` gives the next document, so that after each one the counts are near the weights.

    The divisor method of Jefferson (D'Hondt): of n documents, no source has fewer than its weight's share of n,
    rounded down.
    """
    return min(candidates, key=lambda index: (Fraction(taken[index] + 1) / Fraction(weights[index]), index))


def source_names(files: Sequence[str]) -> list[str]:
    """Names for sources that tell them apart and do not say where on somebody's disk they are."""
    paths = [Path(one).expanduser() for one in files]
    for parts in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = [
            "/".join(path.parts[-parts:]) if path.is_file() else one
            for path, one in zip(paths, files, strict=True)
        ]
        if len(set(names)) == len(set(files)):
            break
    return names


def counted(count: int, what: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def form(text: str, same: Literal["exact", "normalised"]) -> str:
    """What two texts that count as the same have in common."""
    if same == "exact":
        return text
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


class _Source:
    """One source: its rows, in the seed's order, those without a document counted."""

    def __init__(
        self,
        source: TeacherSourceConfig,
        name: str,
        config: DistillConfig,
        needed: Sequence[str],
        index: int,
        left_out: Counter[str],
    ) -> None:
        self.config = source
        self.name = name
        self.rows = read_rows(source.file, source.split, source.rows)
        self._column = source.document_column or config.document_column
        self._longest = config.longest_document
        self._confidence = config.filter.language_confidence
        self._id_column = source.id_column or config.id_column
        _check_columns(self.rows, self._column, self._id_column, needed)
        usable: list[tuple[Row, str]] = []
        unusable: Counter[str] = Counter()
        for row in self.rows.rows:
            try:
                usable.append((row, _text(row, self._column, needed)))
            except _Unusable as error:
                unusable[str(error)] += 1
        if unusable.total() > config.max_unusable_share * len(self.rows.rows):
            reasons = ", ".join(f"{n} x {why}" for why, n in unusable.most_common())
            raise UserError(
                f"{unusable.total()} of {len(self.rows.rows)} rows of {source.file} cannot be used (max_unusable_share "
                f"allows {config.max_unusable_share:.1%}): {reasons}; mend them, or raise --max_unusable_share"
            )
        left_out.update(unusable)
        # A part of a file is a sample of it, not its beginning.
        random.Random(f"{config.seed} {index}").shuffle(usable)
        self.rest = self._short_enough(usable, left_out)

    def document(self, row: Row, text: str, order: int, language_of: LanguageOf | None) -> Document:
        """The row as a document."""
        own = row.fields.get(self._id_column) if self._id_column else None
        language = self.config.language
        if language is None and language_of is not None:
            code, confidence = language_of(text)
            language = code if confidence >= self._confidence else None
        fields = {name: value for name, value in row.fields.items() if name != self._column}
        return Document(row.id if own is None else str(own), self.name, row.id, text, language, fields, order)

    def _short_enough(self, rows: list[tuple[Row, str]], left_out: Counter[str]) -> Iterator[tuple[Row, str]]:
        for row, text in rows:
            if self._longest is not None and len(text) > self._longest:
                left_out["the document is longer than longest_document"] += 1
            else:
                yield row, text


def _text(row: Row, column: str, needed: Sequence[str]) -> str:
    if row.broken is not None:
        raise _Unusable(row.broken)
    value = row.fields.get(column)
    if value is None:
        raise _Unusable("no document")
    if not isinstance(value, str):
        raise _Unusable("the document is not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Unusable("the document is not valid Unicode") from None
    if not any(character.isprintable() and not character.isspace() for character in value):
        raise _Unusable("empty document")
    for name in needed:
        if row.fields.get(name) is None:
            raise _Unusable(f"no {name}, which the instruction names")
    return value


def _check_columns(rows: Rows, document: str, row_id: str | None, needed: Sequence[str]) -> None:
    if not rows.rows:
        raise UserError(f"{rows.name} (--source) has no rows; name a source that has some")
    columns = rows.columns
    named = [("--document_column", document), ("--id_column", row_id)]
    for option, name in [*named, *(("an instruction names it", place) for place in needed)]:
        if (
            name is None or name in columns or not columns
        ):  # no columns: every row is broken, and counted as such
            continue
        close = get_close_matches(name, columns, n=1)
        raise UserError(
            f"{rows.name} has no column {name!r} ({option}); its columns are {', '.join(columns)}"
            + (f"; did you mean {close[0]!r}?" if close else "; name one of them")
        )

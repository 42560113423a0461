"""Which rows are left out of a prepared dataset, and why. Never imports mlx.

Invariant: a row has at most one reason, the first that applies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlx_sumrl.config.prepare import FilterConfig, Unit
from mlx_sumrl.data.duplicates import normalised, words_of
from mlx_sumrl.data.languages import UNDETERMINED, language_of
from mlx_sumrl.data.prepared_row import PreparedRow

CountTokens = Callable[[Sequence[str]], list[int]]
"""Tokens of each text."""

_SURE = 0.5
"""Below this a document's declared language is more likely right than what it looks like."""
_SURE_OF_SUMMARY = 0.9
"""A summary is short: only what is surely another language counts as one."""


def lengths(texts: Sequence[str], unit: Unit, count_tokens: CountTokens | None) -> list[int]:
    """How long each text is; `count_tokens` is needed for tokens only."""
    if unit == "characters":
        return [len(text) for text in texts]
    if unit == "words":
        return [len(words_of(text)) for text in texts]
    assert count_tokens is not None  # the options have checked it
    return count_tokens(texts)


def row_language(row: PreparedRow, declared: str | None) -> str:
    """ISO 639 code of a row's document; the declared one where the document does not say it clearly."""
    code, confidence = language_of(row.document)
    if declared is not None and (code == UNDETERMINED or confidence < _SURE):
        return declared
    return code


def reasons(
    rows: Sequence[PreparedRow], filters: FilterConfig, count_tokens: CountTokens | None
) -> list[str | None]:
    """Why each row is left out; None for one that stays. Languages must be known already."""
    found: list[str | None] = [_reason(row, filters) for row in rows]
    for role in ("summary", "document"):
        least, most = getattr(filters, f"min_{role}"), getattr(filters, f"max_{role}")
        if least is None and most is None:
            continue
        measured = lengths([getattr(row, role) for row in rows], filters.unit, count_tokens)
        for index, length in enumerate(measured):
            if found[index] is None and least is not None and length < least:
                found[index] = f"{role} shorter than {least} {filters.unit}"
            if found[index] is None and most is not None and length > most:
                found[index] = f"{role} longer than {most} {filters.unit}"
    return found


def _reason(row: PreparedRow, filters: FilterConfig) -> str | None:
    if not filters.copies and normalised(row.document) in normalised(row.summary):
        return "summary holds the whole document"
    if filters.languages:
        if row.language not in filters.languages:
            return f"document in another language ({row.language})"
        code, confidence = language_of(row.summary)
        if code != row.language and confidence >= _SURE_OF_SUMMARY:
            return f"summary in another language ({code})"
    return None

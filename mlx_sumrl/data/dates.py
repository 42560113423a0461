"""Dates as data files write them. Never imports mlx.

Invariant: a date that is read carries a time zone (UTC where none is given), so that any two can be compared.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from typing import Any

_YEAR_OR_MONTH = re.compile(r"\d{4}(-\d{2})?")
_SECONDS = re.compile(r"-?\d{9,13}(\.\d+)?")
_MILLISECONDS_FROM = 1e11  # as seconds that is the year 5138
_YEARS = range(1000, 3000)


def read_date(value: Any) -> datetime | None:
    """The moment that a value means, or None.

    Read are ISO 8601 (`2024-01-31`, `2024-01-31T12:00:00Z`, `2024-01`, `2024`), RFC 2822 (`Wed, 31 Jan 2024
    12:00:00 GMT`), seconds or milliseconds since 1970 as number or text, and dates of .parquet files.
    """
    try:
        found = _read(value)
    except (ValueError, OverflowError, OSError, TypeError):
        return None
    if found is None:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def _read(value: Any) -> datetime | None:
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        if value in _YEARS:
            return datetime(int(value), 1, 1)
        return datetime.fromtimestamp(value / 1000 if abs(value) >= _MILLISECONDS_FROM else value, UTC)
    if not isinstance(value, str):
        return None
    text = value.strip()
    if _YEAR_OR_MONTH.fullmatch(text):
        return datetime(int(text[:4]), int(text[5:] or 1), 1)
    if _SECONDS.fullmatch(text):
        return _read(float(text))
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return parsedate_to_datetime(text)

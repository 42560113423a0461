"""Dates as data files write them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest

from mlx_sumrl.data.dates import read_date

NOON = datetime(2024, 1, 31, 12, tzinfo=UTC)
MIDNIGHT = datetime(2024, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2024-01-31", MIDNIGHT),
        ("20240131", MIDNIGHT),
        (" 2024-01-31T12:00:00Z ", NOON),
        ("2024-01-31 13:00:00+01:00", NOON),
        ("2024-01", datetime(2024, 1, 1, tzinfo=UTC)),
        ("2024", datetime(2024, 1, 1, tzinfo=UTC)),
        (2024, datetime(2024, 1, 1, tzinfo=UTC)),
        ("Wed, 31 Jan 2024 12:00:00 GMT", NOON),
        (1706702400, NOON),  # date -u -d @1706702400
        (1706702400.0, NOON),
        (1706702400000, NOON),
        ("1706702400", NOON),
        (datetime(2024, 1, 31, 12), NOON),
        (datetime(2024, 1, 31, 13, tzinfo=timezone(timedelta(hours=1))), NOON),
        (date(2024, 1, 31), MIDNIGHT),
    ],
)
def test_read(value: Any, expected: datetime) -> None:
    assert read_date(value) == expected
    assert read_date(value).tzinfo is UTC  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "yesterday",
        "31.01.2024",
        "2024-13-01",
        True,
        float("nan"),
        float("inf"),
        1e30,
        [],
        {},
        "99999",
    ],
)
def test_not_a_date(value: Any) -> None:
    assert read_date(value) is None

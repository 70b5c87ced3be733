"""Parsing of dates and times, calendar months in UTC, and ids of records.

A month is a number YYYYMM; its start and end are µs since the epoch. An id contains the time of the process that made
it, but nothing is selected or ordered by that.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import UTC, datetime, tzinfo
from email.utils import formatdate
from functools import lru_cache


class DateOutOfRange(ValueError):
    """The datetime would be before the year 1 or after 9999 in UTC."""


def parse_datetime(text: str, zone: tzinfo = UTC) -> datetime:
    """Parse an ISO date (midnight) or datetime as a datetime in UTC. `zone` applies if the text names no offset.

    Raises ValueError for any other text, and its subclass DateOutOfRange for a datetime that UTC can't represent.
    """
    found = datetime.fromisoformat(text)
    try:
        return (found if found.tzinfo else found.replace(tzinfo=zone)).astimezone(UTC)
    except OverflowError as error:
        raise DateOutOfRange from error


SECOND = 1_000_000
DAY = 86_400


def month_of(at: int) -> int:
    """Return the month (YYYYMM) of a time (µs)."""
    return _month_of_day(at // (DAY * SECOND))


@lru_cache(maxsize=8)
def _month_of_day(day: int) -> int:
    date = datetime.fromtimestamp(day * DAY, tz=UTC)
    return date.year * 100 + date.month


@lru_cache(maxsize=8)
def month_end(month: int) -> int:
    """Return the time (µs) at which a month (YYYYMM) ends and budgets are reset."""
    year, number = divmod(month, 100)
    following = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return int(following.timestamp()) * SECOND


def month_start(month: int) -> int:
    """Return the time (µs) at which a month (YYYYMM) begins."""
    year, number = divmod(month, 100)
    return int(datetime(year, number, 1, tzinfo=UTC).timestamp()) * SECOND


def new_id(milliseconds: int | None = None) -> uuid.UUID:
    """Return a UUIDv7 of a time (milliseconds since the epoch; by default now) and 74 random bits (RFC 9562, 5.7).

    If the clock is set back, later ids go back too. Libraries with strictly increasing ids would stay ahead of the
    clock instead.
    """
    random = int.from_bytes(os.urandom(10), "big")
    milliseconds = time.time_ns() // 1_000_000 if milliseconds is None else milliseconds
    high = milliseconds << 16 | 7 << 12 | random >> 68
    return uuid.UUID(int=high << 64 | 0b10 << 62 | random & (1 << 62) - 1)


def http_date() -> str:
    """Return the current time as HTTP's header Date."""
    return _http_date(int(time.time()))


@lru_cache(maxsize=1)
def _http_date(second: int) -> str:
    return formatdate(second, usegmt=True)

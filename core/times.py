"""Dates and times: parsing them, calendar months in UTC (numbers YYYYMM, edges in µs), and ids in order of time.

Moments as people write them: in addresses, in forms and on the command line.

Calendar months in UTC, as numbers YYYYMM, and their edges in µs since the epoch.

Ids of records. They tell the time of the process that made them, and nothing is selected or ordered by that.

Moments as operators type them on the command line.
"""

from __future__ import annotations

import os
import time
import uuid
from argparse import ArgumentTypeError
from datetime import UTC, datetime, tzinfo
from functools import lru_cache

from django.core.management.base import CommandError


class TooFar(ValueError):
    """In UTC it would be before the year 1 or after 9999."""


def read_moment(text: str, zone: tzinfo = UTC) -> datetime:
    """Read an ISO date (its midnight) or date-time, of a zone unless it names an offset, as a moment in UTC.

    Raises ValueError for any other text; TooFar, one of those, for a moment that UTC has no year for.
    """
    found = datetime.fromisoformat(text)
    try:
        return (found if found.tzinfo else found.replace(tzinfo=zone)).astimezone(UTC)
    except OverflowError as error:
        raise TooFar from error


SECOND = 1_000_000
DAY = 86_400


def month_of(at: int) -> int:
    """Give the month (YYYYMM) in which a moment (µs) lies."""
    return _month_of_day(at // (DAY * SECOND))


@lru_cache(maxsize=8)
def _month_of_day(day: int) -> int:
    moment = datetime.fromtimestamp(day * DAY, tz=UTC)
    return moment.year * 100 + moment.month


@lru_cache(maxsize=8)
def month_end(month: int) -> int:
    """Give the moment (µs) at which a month (YYYYMM) is over and its budgets are whole again."""
    year, number = divmod(month, 100)
    following = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return int(following.timestamp()) * SECOND


def month_start(month: int) -> int:
    """Give the moment (µs) at which a month (YYYYMM) begins."""
    year, number = divmod(month, 100)
    return int(datetime(year, number, 1, tzinfo=UTC).timestamp()) * SECOND


def new_id() -> uuid.UUID:
    """Make a UUIDv7 of the wall clock's present milliseconds and 74 random bits (RFC 9562, section 5.7).

    A clock that is set back sets later ids back as well: libraries whose ids never go back would hold them ahead.
    """
    random = int.from_bytes(os.urandom(10), "big")
    high = time.time_ns() // 1_000_000 << 16 | 7 << 12 | random >> 68
    return uuid.UUID(int=high << 64 | 0b10 << 62 | random & (1 << 62) - 1)


def typed_moment(text: str) -> datetime:
    """Read an ISO date (its midnight) or date-time, in UTC unless it says otherwise; for argparse's `type`."""
    try:
        return read_moment(text)
    except ValueError:
        raise ArgumentTypeError(f"{text} is no moment: give 2026-11-24 or 2026-11-24T18:00") from None


def require_order(begin: datetime | None, end: datetime | None) -> None:
    """Refuse a span that ends before it begins: it would hold nothing, and look as if all were well."""
    if begin is not None and end is not None and begin >= end:
        raise CommandError("--from must be before --to.")

"""The minutes, quarter hours and days of rollups, and hours, days and months of any time zone as spans of minutes.

A minute is the number of whole minutes since 1970-01-01 00:00 UTC. A quarter hour and a day (UTC) are named by their
first minute. All time zones of today differ from UTC by whole quarter hours, so their days consist of quarter hours;
with daylight saving, a day has 23, 25 or (Lord Howe Island) 23.5 or 24.5 hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo
from enum import StrEnum
from functools import lru_cache

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE, HOUR, ONE_DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
#: In minutes.
QUARTER, DAY = 15, 24 * 60


class Unit(StrEnum):
    """The units of time that a series can be divided by."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


def minute_of(at: datetime) -> int:
    """Return the minute of a datetime."""
    return (at - EPOCH) // MINUTE


def datetime_of(minute: int) -> datetime:
    """Return the beginning of a minute."""
    return EPOCH + minute * MINUTE


def floor(at: datetime, length: int) -> int:
    """Return the first minute of the period (its length in minutes: QUARTER, DAY) that a datetime is in."""
    return minute_of(at) // length * length


def ceiling(at: datetime, length: int) -> int:
    """Return the first minute of the first period of that length that does not begin before a datetime."""
    return -((EPOCH - at) // (length * MINUTE)) * length


def month_begin(at: datetime) -> datetime:
    """Return the beginning of a datetime's month (UTC)."""
    return at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


@lru_cache(maxsize=100)
def month_minute(minute: int) -> int:
    """Return the first minute of the month (UTC) that a minute is in."""
    return minute_of(month_begin(datetime_of(minute)))


def compose(begin: int, end: int) -> list[tuple[int, int, int]]:
    """Divide a span of quarter hours (`end` excluded) into whole days and the quarter hours before and after them.

    Returns at most three parts: the length of a period (DAY or QUARTER), the first minute, and the minute after it.
    """
    first, last = -(-begin // DAY) * DAY, end // DAY * DAY
    if first >= last:
        return [(QUARTER, begin, end)] if begin < end else []
    parts = [(QUARTER, begin, first), (DAY, first, last), (QUARTER, last, end)]
    return [part for part in parts if part[1] < part[2]]


def buckets(begin: int, end: int, unit: Unit | None, zone: tzinfo) -> Iterator[tuple[int, int, int | None]]:
    """Divide a span of minutes (`end` excluded) by a unit; yield (first, minute after the last, start of the bucket).

    The first and last buckets are cut to the span; the start of the bucket is not. Without a unit there is one bucket,
    whose start is None.
    """
    if unit is None:
        yield begin, end, None
        return
    at = begin
    while at < end:
        local = datetime_of(at).astimezone(zone)
        if unit is Unit.HOUR:
            start, following = at - local.minute, at - local.minute + 60
            # If clocks change by half an hour, an hour begins or ends at the change.
            while datetime_of(start).astimezone(zone).utcoffset() != local.utcoffset():
                start += QUARTER
            while datetime_of(following - 1).astimezone(zone).utcoffset() != local.utcoffset():
                following -= QUARTER
        else:
            first = local.date().replace(day=1) if unit is Unit.MONTH else local.date()
            after = (first + 31 * ONE_DAY).replace(day=1) if unit is Unit.MONTH else first + ONE_DAY
            start, following = midnight(first, zone), midnight(after, zone)
        yield at, min(following, end), start
        at = following


def midnight(day: date, zone: tzinfo) -> int:
    """Return the first minute of a day in a zone, also if daylight saving skips midnight."""
    return ceiling(datetime(day.year, day.month, day.day, tzinfo=zone), 1)

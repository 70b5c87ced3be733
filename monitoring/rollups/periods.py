"""The hours, days and months of rollups: in UTC, and in time zones as ranges of UTC hours.

An hour is the number of whole hours since 1970-01-01 00:00 UTC; a minute is the number of whole minutes.

Rollups are kept by whole UTC hours, so time zones must differ from UTC by whole hours; India's and Nepal's don't.
Daylight saving works: a day then has 23 or 25 hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo
from enum import StrEnum

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
DAY = 24


class Period(StrEnum):
    """The lengths of the periods of rollups; minutes apart."""

    HOUR = "h"
    DAY = "d"
    MONTH = "m"


def hour_of(moment: datetime) -> int:
    """Return the hour of a datetime."""
    return (moment - EPOCH) // HOUR


def hour_until(end: datetime) -> int:
    """Return the hour at which a span (`end` excluded) ends, rounded up."""
    return -((EPOCH - end) // HOUR)


def moment_of(hour: int) -> datetime:
    """Return the beginning of an hour."""
    return EPOCH + hour * HOUR


def month_begin(moment: datetime) -> datetime:
    """Return the beginning of a datetime's month (UTC)."""
    return moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def minute_of(moment: datetime) -> int:
    """Return the minute of a datetime."""
    return (moment - EPOCH) // MINUTE


def moment_of_minute(minute: int) -> datetime:
    """Return the beginning of a minute."""
    return EPOCH + minute * MINUTE


def start_of(period: Period, hour: int) -> int:
    """Return the first hour of the period that an hour belongs to."""
    if period is Period.HOUR:
        return hour
    if period is Period.DAY:
        return hour - hour % DAY
    return hour_of(moment_of(hour).replace(day=1, hour=0))


def end_of(period: Period, start: int) -> int:
    """Return the hour after the period that begins at `start`."""
    if period is Period.HOUR:
        return start + 1
    if period is Period.DAY:
        return start + DAY
    return start_of(Period.MONTH, start + 31 * DAY)


def compose(begin: int, end: int) -> Iterator[tuple[Period, int]]:
    """Divide a span of hours (`end` excluded) into the fewest whole periods; yield (period, start) in order."""
    at = begin
    while at < end:
        fitting = (
            period
            for period in (Period.MONTH, Period.DAY, Period.HOUR)
            if start_of(period, at) == at and end_of(period, at) <= end
        )
        period = next(fitting)
        yield period, at
        at = end_of(period, at)


ONE_DAY = timedelta(days=1)


class Unit(StrEnum):
    """The units of time that a series can be divided by."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class BrokenHours(ValueError):  # no Error suffix, like the exceptions of accounts
    """The time zone differs from UTC by a part of an hour at that time."""


def buckets(begin: int, end: int, unit: Unit | None, zone: tzinfo) -> Iterator[tuple[int, int, int | None]]:
    """Divide a span of hours (`end` excluded) by a unit; yield (first hour, hour after the last, start of the bucket).

    The first and last hours are cut to the span; the start of the bucket is not. Without a unit there is one bucket,
    whose start is None. Raises BrokenHours.
    """
    if unit is None:
        yield begin, end, None
        return
    at = begin
    while at < end:
        local = moment_of(at).astimezone(zone)
        if unit is Unit.HOUR:
            edges = at, at + 1
            _whole_hours(local)
        else:
            opening = local.date().replace(day=1) if unit is Unit.MONTH else local.date()
            edges = first_hour(opening, zone), first_hour(_following(opening, unit), zone)
        yield at, min(edges[1], end), edges[0]
        at = edges[1]


def first_hour(day: date, zone: tzinfo) -> int:
    """Return the first hour of a day in a zone, also if daylight saving skips midnight. Raises BrokenHours."""
    return hour_of(_whole_hours(datetime(day.year, day.month, day.day, tzinfo=zone)))


def _following(opening: date, unit: Unit) -> date:
    return opening + ONE_DAY if unit is Unit.DAY else (opening + 31 * ONE_DAY).replace(day=1)


def _whole_hours(local: datetime) -> datetime:
    offset = local.utcoffset() or timedelta()
    if offset % HOUR:
        raise BrokenHours
    return local

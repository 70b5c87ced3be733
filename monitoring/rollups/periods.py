"""Hours, days and months in UTC, and how a span of time is put together from the largest of them.

A time is the number of whole hours since 1970-01-01 00:00 UTC; that of a minute, of whole minutes.

The hours, days and months of a time zone, as stretches of UTC hours.

Rollups are kept by whole UTC hours, so days can be told of zones that differ from UTC by whole hours: not of India's or
Nepal's. Daylight saving is no obstacle: such days have 23 or 25 hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo
from enum import StrEnum

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
DAY = 24


class Period(StrEnum):
    """The lengths that are kept."""

    HOUR = "h"
    DAY = "d"
    MONTH = "m"


def hour_of(moment: datetime) -> int:
    """Return the hour that a moment falls in."""
    return (moment - EPOCH) // HOUR


def hour_until(end: datetime) -> int:
    """Return the hour that a span's end (excluded) reaches: of a whole hour itself, else the next."""
    return -((EPOCH - end) // HOUR)


def moment_of(hour: int) -> datetime:
    """Return when an hour begins."""
    return EPOCH + hour * HOUR


def month_begin(moment: datetime) -> datetime:
    """Return the moment at which a moment's month began."""
    return moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def minute_of(moment: datetime) -> int:
    """Return the minute that a moment falls in."""
    return (moment - EPOCH) // MINUTE


def moment_of_minute(minute: int) -> datetime:
    """Return when a minute begins."""
    return EPOCH + minute * MINUTE


def start_of(period: Period, hour: int) -> int:
    """Return where the hour, day or month begins that an hour belongs to."""
    if period is Period.HOUR:
        return hour
    if period is Period.DAY:
        return hour - hour % DAY
    return hour_of(moment_of(hour).replace(day=1, hour=0))


def end_of(period: Period, start: int) -> int:
    """Return where the period ends that begins at `start`."""
    if period is Period.HOUR:
        return start + 1
    if period is Period.DAY:
        return start + DAY
    return start_of(Period.MONTH, start + 31 * DAY)


def compose(begin: int, end: int) -> Iterator[tuple[Period, int]]:
    """Cut a span of hours (`end` excluded) into as few whole periods as there are: (period, start) in order of time."""
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
    """What a series may be divided by."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class BrokenHours(ValueError):  # names what was found, as the exceptions of accounts do
    """A time zone, at that time, does not begin its hours with UTC's."""


def buckets(begin: int, end: int, unit: Unit | None, zone: tzinfo) -> Iterator[tuple[int, int, int | None]]:
    """Divide a span of hours: (first hour, hour after the last, hour in which the bucket begins).

    The first and last stretch are cut where the span begins and ends; buckets are not. None as unit gives one bucket,
    which begins at None. Raises BrokenHours.
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
    """Return the hour in which a day begins in a zone; where midnight is skipped, the one that follows. May raise."""
    return hour_of(_whole_hours(datetime(day.year, day.month, day.day, tzinfo=zone)))


def _following(opening: date, unit: Unit) -> date:
    return opening + ONE_DAY if unit is Unit.DAY else (opening + 31 * ONE_DAY).replace(day=1)


def _whole_hours(local: datetime) -> datetime:
    offset = local.utcoffset() or timedelta()
    if offset % HOUR:
        raise BrokenHours
    return local

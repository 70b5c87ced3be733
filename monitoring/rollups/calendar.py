"""The hours, days and months of a time zone, as stretches of UTC hours.

Rollups are kept by whole UTC hours, so days can be told of zones that differ from UTC by whole hours: not of India's or
Nepal's. Daylight saving is no obstacle: such days have 23 or 25 hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta, tzinfo
from enum import StrEnum

from monitoring.rollups.periods import HOUR, hour_of, moment_of

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

"""Hours, days and months in UTC, and how a span of time is put together from the largest of them.

A time is the number of whole hours since 1970-01-01 00:00 UTC; that of a minute, of whole minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
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

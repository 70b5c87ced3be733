"""Forecast of a monthly budget at the pace of the last days."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from core.times import SECOND, month_end, month_of

#: The pace is the mean of so many days, today included, or since the first use in them.
PACE_DAYS = 7
ONE_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a monthly budget will have used when its month `ends`, and when it is reached.

    `reached_at` is None if the budget lasts to the end of the month, or if it is reached already.
    """

    expected: int
    ends: datetime
    reached_at: datetime | None

    def sentence(self, limit: int, write: Callable[[int], str]) -> str:
        """Return the forecast of a budget of `limit` for people."""
        reached = f"; reached on {day_text(self.reached_at)}" if self.reached_at else ""
        return f"At this pace {write(self.expected)} of {write(limit)} by {day_text(self.ends - ONE_DAY)}{reached}."


def day_text(at: datetime) -> str:
    """Format a day of the month: 27 December."""
    return f"{at.day} {at:%B}"


def budget_forecast(*, used: int, limit: int, daily: Mapping[datetime, int], now: datetime) -> Forecast:
    """Return the forecast of a budget of which `used` is used in this month (UTC).

    `daily` has the amounts used by day (its start in UTC); days that are older than PACE_DAYS don't count.
    """
    ends = datetime.fromtimestamp(month_end(month_of(int(now.timestamp()) * SECOND)) // SECOND, tz=now.tzinfo)
    a_day = daily_pace(daily, now)
    expected = used + round(a_day * ((ends - now) / ONE_DAY))
    reaches = used < limit <= expected
    return Forecast(expected, ends, now + ONE_DAY * ((limit - used) / a_day) if reaches else None)


def daily_pace(daily: Mapping[datetime, int], now: datetime) -> float:
    """Return the mean amount a day of the last PACE_DAYS (UTC), or since the first use in them, a day at least."""
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    recent = {day: amount for day, amount in daily.items() if amount and today - day < PACE_DAYS * ONE_DAY}
    elapsed = max(now - min(recent, default=now), ONE_DAY)
    return sum(recent.values()) / (elapsed / ONE_DAY)

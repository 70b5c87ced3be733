"""Calendar months in UTC, as numbers YYYYMM, and their edges in µs since the epoch."""

from datetime import UTC, datetime
from functools import lru_cache

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

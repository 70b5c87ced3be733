"""The forecast of a monthly budget."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from accounts.forecast import budget_forecast

NOW = datetime(2026, 12, 16, 12, tzinfo=UTC)
ENDS = datetime(2027, 1, 1, tzinfo=UTC)


def days(*amounts: int) -> dict[datetime, int]:
    """Return the amounts used by day, today's last."""
    today = NOW.replace(hour=0)
    return {today - timedelta(days=back): amount for back, amount in enumerate(reversed(amounts))}


@pytest.mark.parametrize(
    ("used", "limit", "daily", "expected", "reached_at"),
    [
        (100, 1000, {}, 100, None),
        (100, 1000, days(10, 10, 10, 10, 10, 10, 5), 255, None),
        (100, 200, days(10, 10, 10, 10, 10, 10, 5), 255, NOW + timedelta(days=10)),
        (100, 100, days(10, 10, 10, 10, 10, 10, 5), 255, None),  # it is reached already
        (100, 1000, days(999, 10, 10, 10, 10, 10, 10, 5), 255, None),  # a day that is a week old
        (100, 1000, days(20, 10), 410, None),  # since the first use, a day and a half ago
        (10, 1000, days(10), 165, None),  # within its first day: that is a day's amount
    ],
)
def test_it_goes_on_at_the_pace_of_the_last_days(
    used: int, limit: int, daily: dict[datetime, int], expected: int, reached_at: datetime | None
) -> None:
    found = budget_forecast(used=used, limit=limit, daily=daily, now=NOW)
    assert (found.expected, found.reached_at, found.ends) == (expected, reached_at, ENDS)

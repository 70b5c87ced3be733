"""Figures and times as people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from core.formats import about_milliseconds, ago, exact_money, money

NOW = datetime(2026, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((-50, "just now"), (0.5, "just now"), (42, "42 s ago"), (119, "1 min ago"), (7199, "1 h ago")),
        *((-3600, "in 1 h"), (86_400, "1 day ago"), (-12.5 * 86_400, "in 12 days")),
        *((-90 * 86_400 + 360, "in 90 days"),),
    ],
)
def test_it_writes_the_time_since_in_its_largest_unit(seconds: float, text: str) -> None:
    assert ago(NOW - timedelta(seconds=seconds), NOW) == text


@pytest.mark.parametrize(
    ("ms", "text"),
    [(1.24, "~1.2 ms"), (827, "~830 ms"), (996, "~1 s"), (12_345, "~12 s"), (123_456, "~120 s")],
)
def test_it_writes_a_percentile_no_more_exactly_than_it_is_known(ms: float, text: str) -> None:
    assert about_milliseconds(ms) == text


def test_it_writes_amounts_below_zero() -> None:
    assert (money(-1_500_000_000), exact_money(-1)) == ("-$1.50", "-$0.000000001")

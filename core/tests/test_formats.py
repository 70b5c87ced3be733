"""Figures and times as people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from core.formats import ago, exact_money, money

NOW = datetime(2026, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-50, "just now"), (-3600, "in 60 min"), (0.5, "just now"), (42, "42 s ago")],
)
def test_it_takes_a_clock_that_is_ahead_for_now(seconds: float, text: str) -> None:
    assert ago(NOW - timedelta(seconds=seconds), NOW) == text


def test_it_writes_amounts_below_zero() -> None:
    assert (money(-1_500_000_000), exact_money(-1)) == ("-$1.50", "-$0.000000001")

"""Forecasts of monthly budgets: the pace, what counts, and the sentence."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from accounts.key_cache import key_subject
from accounts.limit_usage import LimitUsage, usage_of_subject
from accounts.limits.types import Amount, LimitName, Limits, Subject, SubjectUsage
from accounts.models import ApiKey
from accounts.services import api_key_rotate
from accounts.tests.factories import Cast, make_key
from monitoring.forecast import budget_forecasts, forecast_of
from monitoring.tests.samples import micros_at, recorded

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
        (100, 255, days(10, 10, 10, 10, 10, 10, 5), 255, None),  # reached as the month ends
    ],
)
def test_it_goes_on_at_the_pace_of_the_last_days(
    used: int, limit: int, daily: dict[datetime, int], expected: int, reached_at: datetime | None
) -> None:
    usage = LimitUsage(LimitName.MONTHLY_TOKENS, Subject("account", "1", Limits(monthly_tokens=limit)), limit, used)
    found = forecast_of(usage, daily, NOW)
    assert (found.expected, found.reached_at, found.ends) == (expected, reached_at, ENDS)


@pytest.mark.parametrize(
    ("name", "used", "limit", "a_day", "text"),
    [
        (
            "monthly_cost",
            224 * 10**8,
            60_000_000_000,
            12 * 10**8,
            "At this pace about $41 of $60 by 31 December.",
        ),
        (
            *("monthly_cost", 224 * 10**8, 37_500_000_000, 12 * 10**8),
            "At this pace about $41 of $37.50 by 31 December; reached on the 29th.",
        ),
        ("monthly_cost", 5, 5, 1, "Calls are refused until 1 January, except to free models."),
        ("monthly_tokens", 5, 5, 1, "Calls are refused until 1 January."),
        ("monthly_cost", 10_000_000, None, 5_200_000, "At this pace about $0.091 by 31 December."),
        ("monthly_tokens", 1_234, 50_000, 100, "At this pace about 2,780 of 50 K by 31 December."),
    ],
)
def test_it_is_a_sentence_with_rounded_figures(name: str, used: int, limit: int | None, a_day: int, text: str) -> None:
    usage = LimitUsage(LimitName(name), Subject("account", "1", Limits()), limit, used)
    assert forecast_of(usage, days(*[a_day] * 6, a_day // 2), NOW).text == text


def test_it_does_not_count_what_open_calls_have_reserved() -> None:
    used = SubjectUsage(
        Subject("account_model", "1:1:gpt-4o", Limits(monthly_cost=60_000_000_000)),
        *(0, 0, 1, Amount(cost=55_000_000_000), Amount(cost=5_000_000_000)),
    )
    usage = next(each for each in usage_of_subject(used, 0) if each.is_money)
    found = forecast_of(usage, {}, NOW)
    assert (usage.remaining, found.expected) == (0, 55_000_000_000)
    assert found.text == "At this pace about $55 of $60 by 31 December."
    used = replace(used, settled=Amount(cost=60_000_000_000))
    usage = next(each for each in usage_of_subject(used, 0) if each.is_money)
    assert forecast_of(usage, {}, NOW).text == "Calls to gpt-4o are refused until 1 January."


@pytest.mark.django_db
def test_it_counts_the_keys_that_a_key_replaced_or_made(cast: Cast) -> None:
    first = cast.owner.key
    ApiKey.objects.filter(pk=first.pk).update(monthly_cost_budget="100")
    current, _ = api_key_rotate(key=first, grace=timedelta(0), actor="test")
    made = make_key(account=first.account)
    ApiKey.objects.filter(pk=made.key.pk).update(maker=current)
    for issued in (cast.owner, made, cast.colleague):
        recorded(issued, admitted_at=micros_at(12, 15, 12), cost=3_000_000_000)
    usage = LimitUsage(LimitName.MONTHLY_COST, key_subject(current, NOW), 100_000_000_000, 6_000_000_000)
    (forecast,) = budget_forecasts([usage], account_id=first.account_id, now=NOW).values()
    assert sum(forecast.daily.values()) == 6_000_000_000
    assert forecast.expected == 6_000_000_000 + 62_000_000_000  # 4 dollars a day for 15.5 days

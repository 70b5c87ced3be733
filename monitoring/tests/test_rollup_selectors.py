"""What readers ask the rollups, against what the log would have said."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from accounts.tests.factories import Cast
from monitoring.recorder import write_records
from monitoring.retention import prune_records
from monitoring.rollups import queries
from monitoring.rollups.figures import Figures
from monitoring.rollups.periods import DAY, QUARTER, Unit, buckets, compose, datetime_of, minute_of
from monitoring.rollups.queries import (
    EVERYTHING,
    Rank,
    Scope,
    TooOld,
    usage_rankings,
    usage_series,
    usage_totals,
)
from monitoring.tests.samples import a_record, micros, recorded

pytestmark = pytest.mark.django_db
BERLIN = ZoneInfo("Europe/Berlin")
#: Before and at the beginning of a quarter hour.
EDGES = (timedelta(microseconds=1), timedelta(0))


def at(month: int, day: int, hour: int = 0, minute: int = 0) -> datetime:
    """Return a moment of 2026 in UTC."""
    return datetime(2026, month, day, hour, minute, tzinfo=UTC)


@given(st.integers(1_000_000, 1_001_000), st.integers(0, 20_000))
def test_it_puts_a_span_together_from_whole_days_and_quarter_hours(begin: int, length: int) -> None:
    begin, end = begin * QUARTER, (begin + length) * QUARTER
    parts = compose(begin, end)
    assert [start for _, start, _ in parts] + [end] == [begin] + [last for *_, last in parts]
    assert all(start % period == 0 and last % period == 0 for period, start, last in parts)
    assert sum(last - start for period, start, last in parts if period == QUARTER) < 2 * DAY


def test_it_adds_up_a_span(cast: Cast) -> None:
    recorded(cast.owner, admitted_at=micros(at(1, 31, 23, 59)))
    for moment in (at(2, 1), at(2, 28, 23, 59), at(3, 1), at(3, 5, 4, 59)):
        recorded(cast.owner, admitted_at=micros(moment), cost=10, cache="hit", latency_ms=100.0)
    recorded(cast.owner, admitted_at=micros(at(3, 5, 5)))
    with CaptureQueriesContext(connection) as queries:
        found = usage_totals(begin=at(2, 1), end=at(3, 5, 5))
    assert len(queries) == 1
    assert (found.requests, found.cost, found.hits, found.misses, found.cache_hit_rate) == (4, 40, 4, 0, 1.0)
    assert found.latency_quantiles() == pytest.approx([100.0] * 3, rel=0.05)
    assert found.first_token_quantiles() is None


def test_it_widens_a_span_to_the_quarter_hours_that_it_touches(cast: Cast) -> None:
    for minute in (29, 30, 44, 45):
        recorded(cast.owner, admitted_at=micros(at(2, 1, 10, minute)))
    assert usage_totals(begin=at(2, 1, 10, 35), end=at(2, 1, 10, 36)).requests == 2


def test_it_leaves_gaps_where_nothing_happened(cast: Cast) -> None:
    for day in (3, 3, 5):
        recorded(cast.owner, admitted_at=micros(at(2, day, 7)))
    found = usage_series(begin=at(2, 1), end=at(2, 10), unit=Unit.DAY)
    assert [(point.start, point.figures.requests) for point in found] == [(at(2, 3), 2), (at(2, 5), 1)]
    for begin, end in ((at(1, 1), at(2, 1)), (at(2, 3), at(2, 3))):
        assert usage_totals(begin=begin, end=end) == Figures()
        assert usage_series(begin=begin, end=end, unit=Unit.DAY, by="key") == []


def test_it_tells_the_hour_that_comes_twice_as_two(cast: Cast) -> None:
    for moment in (at(10, 25, 0, 30), at(10, 25, 1, 30)):  # both 2:30 in Berlin
        recorded(cast.owner, admitted_at=micros(moment))
    found = usage_series(begin=at(10, 25), end=at(10, 26), unit=Unit.HOUR, zone=BERLIN)
    assert [point.start.isoformat() for point in found if point.start] == [
        "2026-10-25T02:00:00+02:00",
        "2026-10-25T02:00:00+01:00",
    ]


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        ("Asia/Kolkata", at(2, 1)),  # UTC + 5:30
        ("Asia/Kathmandu", at(2, 1)),  # UTC + 5:45
        ("America/St_Johns", at(3, 7)),  # UTC - 3:30, an hour later from March 8 on
        ("Australia/Lord_Howe", at(4, 3)),  # UTC + 11, half an hour less from April 5 on
        ("Australia/Lord_Howe", at(10, 2)),  # the half hour comes back on October 4
        ("Pacific/Chatham", at(4, 3)),  # UTC + 13:45, an hour less from April 5 on
        ("Europe/Berlin", at(3, 27)),  # a day of 23 hours
    ],
)
def test_days_of_any_time_zone_add_up_exactly(cast: Cast, name: str, begin: datetime) -> None:
    zone, end = ZoneInfo(name), begin + timedelta(days=5)
    moments = [begin + timedelta(minutes=7 * number, seconds=number) for number in range(5 * 24 * 60 // 7)]
    moments += [begin + timedelta(minutes=15 * number) - each for number in range(1, 480) for each in EDGES]
    write_records([a_record(cast.owner, admitted_at=micros(each), cost=number) for number, each in enumerate(moments)])
    inside = [(each, cost) for cost, each in enumerate(moments) if begin <= each < end]
    account = Scope(account_id=cast.owner.key.account_id)
    for unit in (Unit.DAY, Unit.MONTH):
        days, costs = Counter[datetime](), Counter[datetime]()
        for each, cost in inside:
            local = each.astimezone(zone)
            start = datetime(local.year, local.month, local.day if unit is Unit.DAY else 1, tzinfo=zone)
            days[start] += 1
            costs[start] += cost
        found = usage_series(begin=begin, end=end, unit=unit, zone=zone, scope=account)
        assert {point.start: point.figures.requests for point in found} == days
        assert {point.start: point.figures.cost for point in found} == costs


def test_an_hour_begins_anew_when_clocks_change_by_half_an_hour() -> None:
    zone = ZoneInfo("Australia/Lord_Howe")
    for begin, hours in (
        (at(4, 4, 14), ["01:00+1100", "01:30+1030", "02:00+1030"]),
        (at(10, 3, 14), ["00:30+1030", "01:00+1030", "02:30+1100"]),
    ):
        found = list(buckets(minute_of(begin), minute_of(begin) + 120, Unit.HOUR, zone))
        assert [f"{datetime_of(first).astimezone(zone):%H:%M%z}" for first, *_ in found][:3] == hours
        assert sum(last - first for first, last, _ in found) == 120


def test_it_refuses_days_of_a_zone_whose_quarter_hours_are_gone(cast: Cast) -> None:
    for day in (1, 2, 3, 4):
        recorded(cast.owner, admitted_at=micros(at(2, day, 20)))
    prune_records(at(2, 3, 12), wait=lambda _: False)
    account = Scope(account_id=cast.owner.key.account_id)
    for begin, end, zone in ((at(2, 2), at(2, 5), BERLIN), (at(2, 2, 1), at(2, 5), UTC)):
        with pytest.raises(TooOld, match="Before 2026-02-04"):
            usage_series(begin=begin, end=end, unit=Unit.DAY, zone=zone, scope=account)
    ranked = usage_rankings(begin=at(2, 2, 1), end=at(2, 5))
    assert (ranked.begin, [rank.requests for rank in ranked.accounts]) == (at(2, 2), [3])
    of_all = usage_series(begin=at(2, 2), end=at(2, 5), unit=Unit.DAY, zone=BERLIN)
    in_utc = usage_series(begin=at(2, 1), end=at(2, 5), unit=Unit.DAY, scope=account)
    latest = usage_series(begin=at(2, 4), end=at(2, 5), unit=Unit.DAY, zone=BERLIN, scope=account)
    assert [sum(point.figures.requests for point in points) for points in (of_all, in_utc, latest)] == [3, 4, 1]


def test_it_begins_a_day_whose_midnight_is_skipped_where_it_begins() -> None:
    beirut = ZoneInfo("Asia/Beirut")  # clocks went from 0:00 to 1:00
    found = list(buckets(minute_of(at(3, 27, 22)), minute_of(at(3, 29, 21)), Unit.DAY, beirut))
    assert [until - first for first, until, _ in found] == [24 * 60, 23 * 60]


def test_it_splits_a_series_by_key_under_the_present_name(cast: Cast) -> None:
    for issued in (cast.owner, cast.owner, cast.colleague, cast.stranger):
        recorded(issued, admitted_at=micros(at(2, 3)))
    cast.colleague.key.delete()
    account = Scope(account_id=cast.owner.key.account_id)
    found = usage_series(begin=at(2, 1), end=at(3, 1), scope=account, unit=Unit.MONTH, by="key")
    assert [(point.group, point.group_id, point.figures.requests) for point in found] == [
        ("owner", cast.owner.key.pk, 2),
        ("colleague", found[1].group_id, 1),
    ]


def test_it_ranks_by_cost_and_those_of_equal_cost_by_requests(cast: Cast) -> None:
    for issued, cost in ((cast.owner, 4), (cast.colleague, 2), (cast.colleague, 2), (cast.stranger, 5)):
        recorded(issued, admitted_at=micros(at(2, 3)), cost=cost, input_tokens=20, output_tokens=3)
    recorded(cast.stranger, admitted_at=micros(at(2, 4)), cost=1, status=502, input_tokens=4, output_tokens=0)
    found = usage_rankings(begin=at(2, 1), end=at(3, 1))
    assert [(rank.account, rank.requests, rank.cost) for rank in found.accounts] == [("acme", 3, 8), ("globex", 2, 6)]
    assert [rank.key for rank in found.keys] == ["stranger", "colleague", "owner"]
    key = cast.stranger.key
    told: Any = {"account_id": key.account_id, "account": "globex", "requests": 2, "failed": 1, "tokens": 27, "cost": 6}
    assert found.accounts[1] == Rank(**told)
    assert found.keys[0] == Rank(**told, key_id=key.pk, key="stranger")
    assert len(usage_rankings(begin=at(2, 1), end=at(3, 1), limit=2).keys) == 2


def test_it_ranks_within_a_span_and_a_scope(cast: Cast) -> None:
    for moment in (at(1, 31, 23), at(2, 1), at(2, 28, 23), at(3, 1), at(3, 2, 5), at(3, 2, 6)):
        recorded(cast.owner, admitted_at=micros(moment), model="a", cost=1)
    recorded(cast.stranger, admitted_at=micros(at(2, 3)), model="b", cost=10)

    def costs(scope: Scope = EVERYTHING) -> list[list[int]]:
        found = usage_rankings(begin=at(2, 1), end=at(3, 2, 6), scope=scope)
        return [[rank.cost for rank in ranks] for ranks in (found.accounts, found.keys)]

    assert costs() == [[10, 4], [10, 4]]
    assert costs(Scope(model="a")) == costs(Scope(account_id=cast.owner.key.account_id)) == [[4], [4]]
    assert costs(Scope(key_id=cast.stranger.key.pk)) == [[10], [10]]
    assert costs(Scope(endpoint="nothing")) == [[], []]


def test_it_adds_up_every_figure() -> None:
    names = [each.name for each in fields(Figures)]
    some = Figures(**{name: place for place, name in enumerate(names, start=1)})
    more = Figures(**{name: 100 * place for place, name in enumerate(names, start=1)})
    total = Figures.sum_of((some, more))
    assert [getattr(total, name) for name in names] == [101 * place for place in range(1, len(names) + 1)]


def test_it_writes_figures_as_the_api_shows_them(cast: Cast) -> None:
    moment = micros(at(2, 3))
    recorded(cast.owner, admitted_at=moment, latency_ms=200.0, first_token_ms=50.0, cost=1_500, cached_tokens=4)
    recorded(cast.owner, admitted_at=moment, cache="coalesced", saved_cost=7, cost=0, latency_ms=200.0)
    for status in (400, 429, 503):
        recorded(cast.owner, admitted_at=moment, status=status, cache="", cost=0, latency_ms=200.0)
    answer = usage_totals(begin=at(2, 3), end=at(2, 4)).as_answer()
    assert answer.pop("latency_ms") == {"p50": 198.1, "p95": 198.1, "p99": 198.1}
    assert list(answer.pop("first_token_ms").values()) == pytest.approx([50] * 3, rel=0.05)
    assert answer == {
        "requests": 5,
        "errors": {"invalid": 1, "limited": 1, "failed": 1},
        "cache_hits": 1,
        "cache_misses": 1,
        "cache_hit_rate": 0.5,
        "input_tokens": 100,
        "cached_tokens": 4,
        "output_tokens": 50,
        "cache_write_tokens": 0,
        "reasoning_tokens": 0,
        "cost": "0.000001500",
        "unpriced_requests": 0,
        "saved_cost": "0.000000007",
    }


def test_it_lets_others_have_their_turn(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else in a worker runs while rows are added up, and nobody limits how often an account asks."""
    turns: list[float] = []
    monkeypatch.setattr(queries, "ROWS_A_TURN", 2)
    monkeypatch.setattr("monitoring.rollups.queries.time.sleep", turns.append)
    for number in range(4):
        recorded(cast.owner, admitted_at=micros(at(11, number + 1)), model=f"m{number}")
    usage_series(begin=at(11, 1), end=at(11, 6), unit=Unit.DAY)
    assert turns == [0] * 2


def test_it_finds_nothing_of_a_key_in_an_account_that_it_does_not_belong_to(cast: Cast) -> None:
    recorded(cast.stranger, admitted_at=micros(at(2, 1)))
    mixed = queries.Scope(account_id=cast.owner.key.account_id, key_id=cast.stranger.key.pk)
    assert usage_totals(begin=at(2, 1), end=at(2, 4), scope=mixed) == Figures()

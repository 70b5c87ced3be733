"""GET /usage: what is left of the limits, and what the account used by time, key, model and endpoint."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from accounts.models import Account
from accounts.tests.factories import Cast, make_key
from monitoring.retention import prune_records
from monitoring.tests.samples import micros_at, recorded

pytestmark = pytest.mark.django_db


def ask(cast: Cast, status: int, **asked: str) -> Any:
    """Ask as the owner."""
    answer = Client().get("/usage", asked, **cast.owner.headers)  # type: ignore[arg-type]
    assert answer.status_code == status, answer.content
    return answer.json()


def usage(cast: Cast, **asked: str) -> Any:
    """Return the usage that the owner gets."""
    return ask(cast, 200, **asked)["usage"]


def errors(cast: Cast, **asked: str) -> Any:
    """Ask in a way that is refused."""
    return ask(cast, 400, **asked)["errors"]


def test_it_tells_the_present_month_by_day(cast: Cast) -> None:
    now = timezone.now()
    recorded(cast.owner, cost=3_000)
    recorded(cast.colleague, cost=4_000)
    recorded(cast.stranger)
    recorded(cast.owner, admitted_at=int((now - timedelta(days=32)).timestamp()) * 1_000_000)
    found = usage(cast)
    assert (found["from"], found["time_zone"], found["group_by"]) == (f"{now:%Y-%m}-01T00:00:00+00:00", "UTC", ["day"])
    assert datetime.fromisoformat(found["to"]) >= now
    assert found["totals"]["requests"] == 2
    (today,) = found["series"]
    assert today.pop("start") in {f"{each:%Y-%m-%d}T00:00:00+00:00" for each in (now, timezone.now())}
    assert today == found["totals"]
    assert today["cost"] == "0.000007000"


def test_it_tells_the_limits_too_and_needs_the_scope(cast: Cast) -> None:
    answer = Client().get("/usage/", **cast.owner.headers).json()  # type: ignore[arg-type]
    assert (answer["account"], answer["key"], answer["source"]) == ("acme", "owner", "limits")
    assert {each["owner"] for each in answer["limits"]} == {"key", "account"}
    assert answer["expires_at"] is None
    assert "usage" in answer["scopes"]
    ends = timezone.now() + timedelta(days=9)
    ending = make_key(account=cast.owner.key.account, name="ending", expires_at=ends)
    shown = Client().get("/usage", **ending.headers).json()["expires_at"]  # type: ignore[arg-type]
    assert datetime.fromisoformat(shown) == ends
    narrow = make_key(account=cast.owner.key.account, name="narrow", scopes=["chat"])
    assert Client().get("/usage", **narrow.headers).json()["code"] == "scope_denied"  # type: ignore[arg-type]


def test_it_forecasts_budgets(cast: Cast) -> None:
    Account.objects.filter(name="acme").update(monthly_token_budget=1_000_000)
    recorded(cast.colleague)
    forecasts = {each["owner"]: each["forecast"] for each in ask(cast, 200)["limits"] if "forecast" in each}
    assert list(forecasts) == ["account"]
    assert (forecasts["account"]["expected"] >= 30, forecasts["account"]["reached"]) == (True, None)
    assert forecasts["account"]["text"].startswith("At this pace about ")


@pytest.mark.parametrize(
    ("group_by", "expected"),
    [
        ("", [(None, None, 4)]),
        ("month", [("2026-02-01T00:00:00+00:00", None, 3), ("2026-03-01T00:00:00+00:00", None, 1)]),
        ("key", [(None, "owner", 3), (None, "colleague", 1)]),
        ("endpoint", [(None, "chat", 3), (None, "summarize", 1)]),
        ("model , month", [("2026-02-01T00:00:00+00:00", "a", 2), ("2026-02-01T00:00:00+00:00", "b", 1),
                         ("2026-03-01T00:00:00+00:00", "a", 1)]),
        ("hour", [("2026-02-03T07:00:00+00:00", None, 2), ("2026-02-28T23:00:00+00:00", None, 1)]),
    ],
)  # fmt: skip
def test_it_divides_by_time_and_group(cast: Cast, group_by: str, expected: list[tuple[Any, Any, int]]) -> None:
    recorded(cast.owner, admitted_at=micros_at(2, 3, 7), model="a", endpoint="chat")
    recorded(cast.owner, admitted_at=micros_at(2, 3, 7, 59), model="b", endpoint="summarize")
    recorded(cast.colleague, admitted_at=micros_at(2, 28, 23), model="a", endpoint="chat")
    recorded(cast.owner, admitted_at=micros_at(3, 31, 23), model="a", endpoint="chat")
    until = "2026-03-01" if group_by == "hour" else "2026-04-01"
    found = usage(cast, group_by=group_by, **{"from": "2026-02-01", "to": until})
    group = next((name for name in ("key", "model", "endpoint") if name in group_by), "none")
    series = [(each.get("start"), each.get(group), each["requests"]) for each in found["series"]]
    assert series == expected
    assert found["totals"]["requests"] == sum(count for *_, count in expected)


def test_it_tells_days_and_the_span_in_the_time_zone(cast: Cast) -> None:
    recorded(cast.owner, admitted_at=micros_at(6, 1, 21, 59))
    recorded(cast.owner, admitted_at=micros_at(6, 1, 22))
    found = usage(cast, time_zone="Europe/Berlin", **{"from": "2026-06-01", "to": "2026-06-02T12:00"})
    assert (found["from"], found["to"]) == ("2026-06-01T00:00:00+02:00", "2026-06-02T12:00:00+02:00")
    assert [(each["start"], each["requests"]) for each in found["series"]] == [
        ("2026-06-01T00:00:00+02:00", 1),
        ("2026-06-02T00:00:00+02:00", 1),
    ]
    same = usage(cast, time_zone="Europe/Berlin", **{"from": "2026-05-31T22:00Z", "to": "2026-06-02T12:00:00+02:00"})
    assert same == found


@pytest.mark.parametrize(("zone", "minute"), [("Asia/Kolkata", 30), ("Asia/Kathmandu", 15)])
def test_it_tells_days_of_a_zone_whose_hours_are_not_those_of_utc(cast: Cast, zone: str, minute: int) -> None:
    for moment in (micros_at(6, 1, 18, minute) - 1, micros_at(6, 1, 18, minute), micros_at(6, 2, 18, minute) - 1):
        recorded(cast.owner, admitted_at=moment)
    found = usage(cast, time_zone=zone, **{"from": "2026-06-01", "to": "2026-06-04"})
    assert [(each["start"][:19], each["requests"]) for each in found["series"]] == [
        ("2026-06-01T00:00:00", 1),
        ("2026-06-02T00:00:00", 2),
    ]
    assert usage(cast, time_zone=zone)["time_zone"] == zone


def test_it_says_why_days_of_a_zone_that_are_older_than_the_quarter_hours_can_t_be_told(cast: Cast) -> None:
    for day in (1, 2, 3):
        recorded(cast.owner, admitted_at=micros_at(6, day, 12))
    prune_records(datetime(2026, 6, 3, tzinfo=UTC), wait=lambda _: False)
    span = {"from": "2026-06-01", "to": "2026-06-04"}
    (told,) = errors(cast, time_zone="Asia/Kolkata", **span)["from"]
    assert told.startswith("Before 2026-06-04, usage of accounts and keys is kept by the day of UTC only")
    assert usage(cast, **span)["totals"]["requests"] == 3


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"from": "yesterday"}, "from"),
        ({"to": "2026-13-01"}, "to"),
        ({"from": "2026-02-01T00:20"}, "from"),
        ({"from": "0001-01-01"}, "from"),
        ({"to": "9999-12-31T23:00"}, "to"),
        ({"from": "2026-02-02", "to": "2026-02-02"}, "to"),
        ({"from": "2026-02-02", "to": "2026-02-01"}, "to"),
        ({"from": "x\x00", "to": "2026-02-01"}, "from"),
        *(({"time_zone": name}, "time_zone") for name in ("Mars/Olympus", "../../etc/passwd", "localtime", "Factory")),
        *(({"time_zone": name}, "time_zone") for name in ("posixrules", "right/Europe/Berlin")),
        *(({"group_by": text}, "group_by") for text in ("week", "hour,day", "key,model", "account")),
        ({"group_by": "hour", "from": "2026-01-01", "to": "2026-02-01T01:00"}, "from"),
        ({"group_by": "day", "from": "2024-01-01", "to": "2026-02-01"}, "from"),
        ({"group_by": "month", "from": "2001-01-01", "to": "2026-02-01"}, "from"),
        ({"group_by": "key", "from": "2001-01-01", "to": "2026-02-01"}, "from"),
    ],
)
def test_it_refuses_what_makes_no_span(cast: Cast, asked: dict[str, str], field: str) -> None:
    assert list(errors(cast, **asked)) == [field]


def test_it_names_every_field_that_is_wrong_and_which_there_are(cast: Cast) -> None:
    told = ["Unknown parameter: known are from, to, time_zone and group_by."]
    assert errors(cast, timezone="Europe/Berlin", groupby="month") == {"timezone": told, "groupby": told}
    assert set(errors(cast, time_zone="Nowhere", group_by="week")) == {"time_zone", "group_by"}


def test_it_takes_a_span_of_the_longest_that_is_allowed(cast: Cast) -> None:
    recorded(cast.owner, admitted_at=micros_at(1, 31, 23))
    berlin = {"time_zone": "Europe/Berlin"}
    for span in (
        {"group_by": "hour", "from": "2026-01-01", "to": "2026-02-01"},
        {"from": "2025-01-01", "to": "2026-02-05"},
        {"group_by": "month", **berlin, "from": "2017-01-01", "to": "2027-01-01"},
        {**berlin, "from": "2026-01-01", "to": "2026-04-11"},
    ):
        assert usage(cast, **span)["totals"]["requests"] == 1
    refused = errors(cast, **berlin, **{"from": "2026-01-01", "to": "2026-04-12"})
    assert refused == {"from": ["At most 100 days at once by the day."]}

"""The overview of an account and of a key: state, limits, forecast, usage, keys and errors, by what a user may see."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from accounts.models import Account, ApiKey
from accounts.tests.factories import Cast, logged_in, make_key, make_staff, spend
from core.formats import NOTHING
from monitoring.models import Rollup
from monitoring.tests.samples import micros, recorded
from operations import overview as module
from operations.overview import Overview

pytestmark = pytest.mark.django_db

ACCOUNT, KEY = "/admin/accounts/account/{}/change/", "/admin/accounts/apikey/{}/change/"


def shown(site: Client, subject: Account | ApiKey) -> str:
    """Return the page of an account or a key."""
    response = site.get((KEY if isinstance(subject, ApiKey) else ACCOUNT).format(subject.pk))
    assert response.status_code == 200
    return response.content.decode()


def overview(subject: Account | ApiKey) -> Overview:
    """Return what a user sees who may see everything."""
    return Overview(subject, sees_usage=True, sees_requests=True)


def ago(**time: float) -> dict[str, Any]:
    """Return the time of a record that was admitted so long ago."""
    return {"admitted_at": int((timezone.now() - timedelta(**time)).timestamp() * 1_000_000)}


def test_it_sums_up_an_account_and_each_of_its_keys(cast: Cast) -> None:
    recorded(cast.owner, cost=3_000_000_000)
    recorded(cast.owner, status=502, error_code="upstream_failed", cost=0, **ago(days=2))
    recorded(cast.colleague, status=429, count=8, cost=0)
    recorded(cast.stranger, cost=9_000_000_000)
    recorded(cast.owner, cost=5_000_000_000, **ago(days=31))
    account = overview(cast.owner.key.account)
    tiles = {tile.name: tile for tile in account.tiles}
    assert tiles["Requests, 30 days"].value == "10"
    assert (tiles["Failed, 30 days"].value, tiles["Failed, 30 days"].more) == (
        "10 %",
        "1 failed, 8 over a limit, 0 invalid",
    )
    assert tiles["Failed, 30 days"].url.endswith("?account=acme&status=failed")
    data = account.chart_data
    cost, requests = data["charts"]
    assert (sum(cost["sets"][0]["values"]), len(data["axis"]["labels"])) == (3.0, 30)
    assert "?account=acme&from=" in data["axis"]["queries"][0]
    assert {each["name"]: sum(each["values"]) for each in requests["sets"]} == {
        "answered": 1, "over a limit": 8, "failed": 1, "invalid": 0,
    }  # fmt: skip
    rows = {row.key.name: (row.requests, row.cost) for row in account.keys}
    unused = ("0", NOTHING)
    assert rows == {"owner": ("2", "$3.00"), "colleague": ("8", "$0.00"), "revoked": unused, "expired": unused}
    assert [record.status for record in account.errors] == [429, 502]
    assert [(model, figures.requests) for model, figures in account.models] == [("gpt-3.5-turbo", 10)]
    key = overview(cast.owner.key)
    assert key.total.requests == 2
    assert key.tiles[2].url.endswith(f"?account=acme&key={cast.owner.key.prefix}")
    assert [record.status for record in key.errors] == [502]


@pytest.mark.parametrize(
    ("budget", "state", "outlook"),
    [
        ("1000", "active", "At this pace about $"),
        ("3.5", "active", "; reached on "),
        ("2", "over budget", "Calls are"),
    ],
)
def test_it_forecasts_a_budget(
    cast: Cast, monkeypatch: pytest.MonkeyPatch, budget: str, state: str, outlook: str
) -> None:
    account = cast.owner.key.account
    Account.objects.filter(pk=account.pk).update(monthly_cost_budget=Decimal(budget))
    spend(cast.owner, 3_000_000)  # $3
    month = timezone.now().replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    monkeypatch.setattr("django.utils.timezone.now", lambda: month + timedelta(days=9))
    account.refresh_from_db()
    recorded(cast.owner, cost=3_000_000_000, admitted_at=micros(month + timedelta(days=8)))
    found = overview(account)
    bar = next(bar for bar in found.bars if bar.title == "Cost this month")
    assert found.state[0] == state
    assert outlook in bar.outlook


def test_it_opens_on_the_overview_with_the_form_behind_it(site: Client, cast: Cast) -> None:
    Account.objects.filter(name="acme").update(display_name="Acme <Corp>", requests_per_minute=7)
    recorded(cast.owner, status=502, error_code="upstream_failed")
    page = shown(site, cast.owner.key.account)
    texts = (
        "Acme &lt;Corp&gt;",
        "0 of 7 (0 %)",
        "upstream_failed",
        cast.colleague.key.masked,
        "?account=acme",
        "/usage/",
    )
    assert not [text for text in texts if text not in page]
    assert cast.stranger.key.masked not in page
    assert 'name="requests_per_minute" value="7"' in page
    key = shown(site, cast.owner.key)
    assert not [text for text in ("upstream_failed", "(account)", "curl ", "/playground/") if text not in key]
    revoked = shown(site, cast.revoked.key)
    assert "Calls with this key are refused now: 401" in revoked


def test_it_stays_light_and_asks_little_however_many_keys_there_are(
    site: Client, cast: Cast, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(15):
        recorded(make_key(account=cast.owner.key.account), cost=number, status=502, error_code="upstream_failed")
    with django_assert_max_num_queries(26):
        page = shown(site, cast.owner.key.account)
    assert len(overview(cast.owner.key.account).keys) == module.KEYS
    assert len(page) < 100_000


def test_it_shows_usage_and_requests_to_those_who_may_see_them(cast: Cast) -> None:
    recorded(cast.owner, status=502, error_code="upstream_failed", cost=1_230_000_000)
    for permissions, sees_usage, sees_requests in (
        ((), False, False),
        (("monitoring.view_rollup",), True, False),
        (("monitoring.view_requestrecord",), True, True),
    ):
        client = logged_in(make_staff("accounts.view_account", *permissions, name="-".join(permissions) or "none"))
        page = shown(client, cast.owner.key.account)
        assert ("overview-data" in page, "upstream_failed" in page) == (sees_usage, sees_requests), permissions
        assert ("/requestrecord/?account" in page) == sees_requests


def test_it_says_what_to_do_without_requests(site: Client, cast: Cast) -> None:
    page = shown(site, cast.stranger.key)
    assert "No requests in the last 30 days" in page
    assert "overview-data" not in page
    assert "at this pace" not in page
    assert not Rollup.objects.exists()


def test_it_searches_only_the_newest_records_for_errors(cast: Cast, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEARCHED", 2)
    recorded(cast.owner, status=502, error_code="upstream_failed", **ago(hours=3))
    for hours in (2, 1, 0.5):
        recorded(cast.owner, **ago(hours=hours))
    assert overview(cast.owner.key.account).errors == []
    recorded(cast.owner, status=503, error_code="upstream_busy")
    assert [record.status for record in overview(cast.owner.key.account).errors] == [503]

"""What accounts have used, as bars in the admin."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from accounts import limit_usage
from accounts.admin.accounts import RECORDED
from accounts.key_cache import build_authenticated_key
from accounts.limits import get_limits
from accounts.limits.backend import LimitBackend
from accounts.limits.types import Amount, LimitsUnavailable
from accounts.models import Account, ApiKey
from accounts.tests.factories import IssuedKey, logged_in, make_admin, make_key

pytestmark = pytest.mark.django_db
ACCOUNTS = "/admin/accounts/account/"


@pytest.fixture
def site() -> Client:
    """Return the browser of an administrator who is logged in."""
    return logged_in(make_admin())


@pytest.fixture
def issued() -> IssuedKey:
    """Make a key of an account with budgets of which some is used."""
    issued = make_key()
    Account.objects.update(monthly_token_budget=10_000, monthly_cost_budget=Decimal("12.5"), requests_per_minute=7)
    issued.key.account.refresh_from_db()
    limits, scope = get_limits(), build_authenticated_key(issued.key, timezone.now()).limits
    limits.usage(scope)  # seeds the ledgers, before what is charged then
    used = Amount(1_200, 2_500_000_000)
    limits.settle(scope, "0" * 32, admitted_at=limits.now(), used=used, record=None)
    return issued


def page(site: Client, url: str) -> str:
    """Return a page."""
    answer = site.get(url)
    assert answer.status_code == 200
    return answer.content.decode()


def test_it_shows_the_month_on_the_list(site: Client, issued: IssuedKey) -> None:
    shown = page(site, ACCOUNTS)
    assert "1,200 of 10,000 (12 %)" in shown
    assert "$2.50 of $12.50 (20 %)" in shown
    assert '<progress class="limit-bar" max="100" value="12" aria-label="Tokens this month">' in shown


def test_it_shows_what_each_key_cost_on_the_list(site: Client, issued: IssuedKey) -> None:
    assert "$2.50" in page(site, "/admin/accounts/apikey/")
    ApiKey.objects.update(monthly_cost_budget=Decimal(10))
    assert "$2.50 of $10.00 (25 %)" in page(site, "/admin/accounts/apikey/")


def test_it_names_a_reached_limit(site: Client, issued: IssuedKey) -> None:
    Account.objects.update(monthly_token_budget=1_200, monthly_cost_budget=Decimal("2.51"))
    shown = page(site, ACCOUNTS)
    assert "1,200 of 1,200 (100 %)" in shown
    assert shown.count("reached</strong>") == 1
    assert "limit-near" in shown, "99 % is near, not reached"


def test_it_shows_every_limit_on_the_page(site: Client, issued: IssuedKey) -> None:
    shown = page(site, f"{ACCOUNTS}{issued.key.account_id}/change/")
    assert "Requests in the last minute" in shown
    assert "0 of 7 (0 %)" in shown


def test_it_needs_no_query_a_row(
    site: Client, issued: IssuedKey, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    page(site, ACCOUNTS)
    for number in range(10):
        Account.objects.create(name=f"more-{number}")
    page(site, ACCOUNTS)  # seeds the new ledgers
    with django_assert_max_num_queries(9):
        page(site, ACCOUNTS)


def test_it_shows_the_month_by_the_records_while_redis_is_away(
    site: Client, issued: IssuedKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: LimitBackend, *arguments: Any) -> Any:
        raise LimitsUnavailable

    def settled(subjects: Any, month: int) -> Any:
        return {subject: Amount(1_500, 5_000_000_000) for subject in subjects}

    monkeypatch.setattr(type(get_limits()), "usages", fail)
    monkeypatch.setattr(limit_usage, "settled_in_database", settled)
    for shown in (page(site, ACCOUNTS), page(site, f"{ACCOUNTS}{issued.key.account_id}/change/")):
        assert "1,500 of 10,000 (15 %)" in shown
        assert "$5.00 of $12.50 (40 %)" in shown
    assert RECORDED in shown
    assert "Requests in the last minute" not in shown

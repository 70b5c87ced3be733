"""GET /usage: the caller's limits and what is left of them, live or (while their store is down) by the records."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from django.db import OperationalError
from django.test import Client

from accounts import services
from accounts.limits import _installed, get_limits
from accounts.limits.types import Amount, LimitsUnavailable, Subject
from accounts.tests.factories import ACTOR, Cast, IssuedKey, make_account, make_key, spend

pytestmark = pytest.mark.django_db


def usage(issued: IssuedKey) -> Any:
    answer = Client().get("/usage", **issued.headers)  # type: ignore[arg-type]  # headers
    assert answer.status_code == 200, answer.content
    return answer.json()


def limit_of(body: Any, owner: str, name: str) -> dict[str, Any]:
    (found,) = [limit for limit in body["limits"] if (limit["owner"], limit["name"]) == (owner, name)]
    return dict(found)


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the state store be down."""

    def fail(*_: Any, **__: Any) -> None:
        raise LimitsUnavailable

    kind = type(get_limits())
    for name in ("peek", "usage"):
        monkeypatch.setattr(kind, name, fail)


def test_it_tells_every_limit_of_key_and_account(cast: Cast) -> None:
    body = usage(cast.owner)
    assert (body["account"], body["key"], body["tier"], body["source"]) == ("acme", "owner", "free", "limits")
    assert body["month"] == datetime.now(UTC).strftime("%Y-%m")
    names = ["requests_per_minute", "tokens_per_minute", "concurrent_requests", "monthly_tokens", "monthly_cost"]
    assert [(limit["owner"], limit["name"]) for limit in body["limits"]] == [
        (owner, name) for owner in ("key", "account") for name in names
    ]
    assert limit_of(body, "key", "requests_per_minute")["limit"] == 5
    assert limit_of(body, "account", "requests_per_minute") == {
        "name": "requests_per_minute",
        "owner": "account",
        "limit": None,
        "used": None,
        "remaining": None,
        "reset": None,
    }


def test_it_tells_what_was_used_and_what_is_open() -> None:
    account = make_account(monthly_token_budget=10_000, tokens_per_minute=1_000, concurrent_requests=3)
    issued = make_key(account=account, monthly_cost_budget=Decimal("0.001"))
    spend(issued, 300, requests=1)
    spend(issued, 100, requests=1, stays_open=True)
    body = usage(issued)
    told = {
        (owner, name): (limit["limit"], limit["used"], limit["remaining"])
        for limit in body["limits"]
        for owner, name in [(limit["owner"], limit["name"])]
    }
    assert told["key", "requests_per_minute"] == (5, 2, 3)
    assert told["key", "monthly_cost"] == ("0.001000000", "0.000400000", "0.000600000")
    assert told["key", "monthly_tokens"] == (None, 400, None)
    assert told["account", "tokens_per_minute"] == (1_000, 400, 600)
    assert told["account", "concurrent_requests"] == (3, 1, 2)
    assert told["account", "monthly_tokens"] == (10_000, 400, 9_600)
    next_month = datetime.fromtimestamp(limit_of(body, "account", "monthly_tokens")["reset"], tz=UTC)
    assert (next_month.day, next_month.hour, next_month > datetime.now(UTC)) == (1, 0, True)


def test_it_does_not_count_itself(cast: Cast) -> None:
    for _ in range(10):
        assert limit_of(usage(cast.owner), "key", "requests_per_minute")["remaining"] == 5


def test_it_shows_nothing_of_other_accounts(cast: Cast) -> None:
    spend(cast.stranger, 77)
    assert limit_of(usage(cast.owner), "account", "monthly_tokens")["used"] == 0
    spend(cast.colleague, 5)
    body = usage(cast.owner)
    assert limit_of(body, "account", "monthly_tokens")["used"] == 5
    assert limit_of(body, "key", "monthly_tokens")["used"] == 0


def test_it_has_the_headers_of_answers_that_no_cache_may_share(cast: Cast) -> None:
    answer = Client().get("/usage/", **cast.owner.headers)  # type: ignore[arg-type]  # headers
    assert answer["Cache-Control"] == "private, no-store"
    assert answer["X-RateLimit-Remaining"] == "5"


def test_it_wants_a_key_with_the_scope(cast: Cast) -> None:
    assert Client().get("/usage").status_code == 401
    narrow = make_key(scopes=["chat"])
    assert Client().get("/usage", **narrow.headers).status_code == 403  # type: ignore[arg-type]  # headers
    for gone in (cast.revoked, cast.expired, cast.disabled):
        assert Client().get("/usage", **gone.headers).json()["code"] == "invalid_api_key"  # type: ignore[arg-type]


def test_it_tells_the_months_by_the_records_while_the_store_is_away(
    cast: Cast, away: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = cast.owner.key.account
    account.monthly_token_budget, account.requests_per_minute = 1_000, 9
    services.account_save(account=account, actor=ACTOR)

    def settled(subjects: Sequence[Subject], month: int) -> dict[Subject, Amount]:
        return {subject: Amount(250, 3) for subject in subjects}

    monkeypatch.setattr(_installed, "seeder", settled)
    body = usage(cast.owner)
    assert body["source"] == "records"
    tokens = limit_of(body, "account", "monthly_tokens")
    assert (tokens["used"], tokens["remaining"]) == (250, 750)
    requests = limit_of(body, "account", "requests_per_minute")
    assert (requests["limit"], requests["used"], requests["remaining"]) == (9, None, None)


def test_it_answers_503_when_the_database_is_away_as_well(
    cast: Cast, away: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(subjects: Sequence[Subject], month: int) -> dict[Subject, Amount]:
        raise OperationalError("gone")

    monkeypatch.setattr(_installed, "seeder", gone)
    answer = Client().get("/usage", **cast.owner.headers)  # type: ignore[arg-type]  # headers
    assert (answer.status_code, answer.json()["code"]) == (503, "dependency_unavailable")
    assert answer["Retry-After"]

"""Would this key be admitted, under which limits, and why not: asked of the service and of `manage.py key explain`."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from pytest_django import Settings

from accounts import services
from accounts.explain import Explanation, explain_key
from accounts.limits import get_limits
from accounts.limits.types import LimitsUnavailable
from accounts.models import ApiKey
from accounts.tests.factories import ACTOR, Cast, IssuedKey, make_account, make_key, make_tier, secret_part, spend

pytestmark = pytest.mark.django_db


def explain(issued: IssuedKey, **options: Any) -> Explanation:
    """Explain a key as the database has it now."""
    return explain_key(ApiKey.objects.select_related("account", "tier").get(pk=issued.key.pk), **options)


def codes(explained: Explanation) -> list[tuple[int, str]]:
    return [(reason.status, reason.code) for reason in explained.reasons]


def limit_of(explained: Explanation, owner: str, name: str) -> dict[str, Any]:
    """Return a limit as it is printed."""
    (found,) = [limit for limit in explained.as_json()["limits"] if (limit["owner"], limit["name"]) == (owner, name)]
    return dict(found)


def test_it_admits_a_fresh_key_and_counts_nothing(cast: Cast) -> None:
    for _ in range(10):
        explained = explain(cast.owner)
        assert explained.admitted
    requests = limit_of(explained, "key", "requests_per_minute")
    assert [requests[name] for name in ("limit", "used", "remaining", "source")] == [5, 0, 5, "tier free"]
    assert (explained.account, explained.name, explained.tier) == ("acme", "owner", "free")
    assert (explained.state, explained.models) == ("active", None)
    assert "keys:manage" not in explained.scopes
    cast.owner.key.refresh_from_db()
    assert cast.owner.key.last_used_at is None
    two = make_key(tier=make_tier("two", models=["a", "b"]), models=["b", "c"])
    assert explain(two).models == ["b"]


def test_it_names_all_that_makes_a_key_invalid(cast: Cast, settings: Settings) -> None:
    for who, text in (("revoked", "was revoked at"), ("expired", "expired at"), ("disabled", "closed is disabled")):
        explained = explain(getattr(cast, who))
        assert codes(explained) == [(401, "invalid_api_key")]
        assert text in explained.reasons[0].text
    services.account_set_active(account=cast.revoked.key.account, active=False, actor=ACTOR)
    assert len(explain(cast.revoked).reasons) == 2
    key = services.api_key_import(
        account=make_account(), tier=make_tier(), name="demo", plain="dev_key_123", actor=ACTOR
    )
    assert explain_key(key).admitted
    settings.ALLOW_PLAIN_KEYS = False
    assert codes(explain_key(key)) == [(401, "invalid_api_key")]
    settings.API_KEY_PEPPERS = ["another-pepper-of-forty-characters-......"]
    assert "API_KEY_PEPPERS" in explain(cast.stranger).reasons[0].text


def test_it_judges_an_address_if_it_is_given_one() -> None:
    issued = make_key(allowed_ips=["192.0.2.0/28"])
    assert explain(issued, address="192.0.2.1").admitted
    assert codes(explain(issued, address="192.0.2.99")) == [(403, "address_denied")]
    unasked = explain(issued)
    assert unasked.admitted
    assert "certain addresses only" in unasked.notes[0]


def test_it_says_until_when_a_replaced_key_works(cast: Cast) -> None:
    services.api_key_rotate(key=cast.owner.key, grace=timedelta(hours=1), actor=ACTOR)
    explained = explain(cast.owner)
    assert explained.admitted
    assert "works until" in explained.notes[0]


@pytest.mark.parametrize(
    ("limit", "code", "use"),
    [
        ({"requests_per_minute_override": 2}, "rate_limited", {"requests": 2}),
        ({"tokens_per_minute_override": 100}, "tokens_limited", {"tokens": 100}),
        ({"concurrent_requests_override": 1}, "concurrency_limited", {"tokens": 1, "stays_open": True}),
        ({"monthly_token_budget": 100}, "budget_exhausted", {"tokens": 100}),
        ({"monthly_cost_budget": Decimal("0.0001")}, "budget_exhausted", {"tokens": 100}),
        ({"monthly_token_budget": 0}, "budget_exhausted", {}),
    ],
)
def test_it_says_which_limit_is_full(limit: dict[str, Any], code: str, use: dict[str, Any]) -> None:
    issued = make_key(**limit)
    spend(issued, **use)
    explained = explain(issued)
    assert codes(explained) == [(429, code)]
    assert "A limit of the key is reached" in explained.reasons[0].text


def test_it_says_when_a_cap_of_the_account_is_full() -> None:
    account = make_account(requests_per_minute=1)
    first, second = make_key(account=account), make_key(account=account)
    spend(first, requests=1)
    explained = explain(second)
    assert explained.reasons[0].text == "A limit of the account is reached: requests in the last minute, 1 of 1."
    assert limit_of(explained, "account", "requests_per_minute")["source"] == f"account {account.name}"


def test_it_says_where_an_override_comes_from_and_when_it_ends() -> None:
    for days, limit, source in (
        (None, 7, "this key's override"),
        (1, 7, "this key's override, until 20"),
        (-1, 5, "tier free (this key's override ended 20"),
    ):
        until = None if days is None else timezone.now() + timedelta(days=days)
        issued = make_key(requests_per_minute_override=7, overrides_until=until)
        found = limit_of(explain(issued), "key", "requests_per_minute")
        assert found["limit"] == limit
        assert found["source"].startswith(source)


def test_it_counts_what_is_open_and_tells_money_exactly() -> None:
    issued = make_key(monthly_token_budget=1_000, monthly_cost_budget=Decimal(1))
    spend(issued, 300)
    spend(issued, 100, stays_open=True)
    explained = explain(issued)
    tokens, cost = (limit_of(explained, "key", name) for name in ("monthly_tokens", "monthly_cost"))
    assert (tokens["used"], tokens["remaining"], tokens["source"]) == (400, 600, "this key")
    assert (cost["limit"], cost["used"], cost["remaining"]) == ("1.000000000", "0.000400000", "0.999600000")


def test_it_tells_the_months_by_the_records_while_the_limits_are_away(
    cast: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise LimitsUnavailable

    monkeypatch.setattr(type(get_limits()), "peek", away)
    explained = explain(cast.owner)
    assert explained.admitted
    assert limit_of(explained, "key", "requests_per_minute")["used"] is None
    assert "down" in explained.notes[0]
    assert codes(explain(make_key(monthly_token_budget=9))) == [(503, "dependency_unavailable")]


def run(*arguments: str) -> str:
    """Run `key explain` and return what it printed."""
    output = StringIO()
    call_command("key", "explain", *arguments, stdout=output)
    return output.getvalue()


def test_its_command_takes_a_prefix_or_a_name_and_an_address(cast: Cast) -> None:
    output = run(cast.owner.key.prefix)
    assert output.startswith(f"Key owner ({cast.owner.key.masked}) of acme, tier free, would be admitted now.")
    assert secret_part(cast.owner.plain) not in output
    told = json.loads(run("--account", "acme", "--name", "revoked", "--json"))
    assert (told["admitted"], told["reasons"][0]["code"]) == (False, "invalid_api_key")
    assert {limit["name"] for limit in told["limits"]} >= {"requests_per_minute", "monthly_cost"}
    make_key(account=cast.owner.key.account, name="office", allowed_ips=["192.0.2.0/28"])
    office = ("--account", "acme", "--name", "office", "--address")
    assert "403 address_denied" in run(*office, "198.51.100.1")
    assert "would be admitted now" in run(*office, "192.0.2.3")
    with pytest.raises(CommandError, match=r"^nowhere is not an IP address"):
        run(*office, "nowhere")

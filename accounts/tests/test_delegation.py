"""What a key that manages keys may hand on: each thing at most as it has it itself, now and later."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.utils import timezone

from accounts.api.keys import delegated_settings, exceeds
from accounts.key_cache import build_authenticated_key
from accounts.models import Account, ApiKey, Tier
from core.errors import InvalidRequest

NOW = timezone.now()
SOON, LATER, PAST = NOW + timedelta(days=1), NOW + timedelta(days=2), NOW - timedelta(days=1)
MANAGING = ["chat", "usage", "keys:manage"]
DELEGATED = ["chat", "usage"]
OVER = {"requests_per_minute_override": 50}


def a_key(tier: dict[str, Any] | None = None, /, **fields: Any) -> ApiKey:
    """Make a key that is in no database, of a tier with 20 requests a minute unless said otherwise."""
    fields.setdefault("scopes", MANAGING)
    return ApiKey(
        pk=1,
        account=Account(pk=1, name="acme"),
        tier=Tier(pk=1, name="tier", **{"requests_per_minute": 20, **(tier or {})}),
        **fields,
    )


def refused(maker: ApiKey, **asked: Any) -> list[str]:
    """Return the fields in which more is asked than the maker has; none if it gets what it asks for."""
    try:
        delegated_settings(maker, asked)
    except InvalidRequest as error:
        return sorted(error.extra["errors"])
    return []


def limits_of(maker: ApiKey, moment: Any = NOW, **asked: Any) -> Any:
    """Return the limits that a new key would have at a moment."""
    made = ApiKey(pk=2, account=maker.account, tier=maker.tier, **delegated_settings(maker, asked))
    return build_authenticated_key(made, moment).limits.subjects[0].limits


def test_it_gives_what_the_maker_has_where_nothing_is_asked() -> None:
    own = {
        "scopes": MANAGING,
        "models": ["a"],
        "allowed_ips": ["192.0.2.0/24"],
        "requests_per_minute_override": 3,
        "tokens_per_minute_override": 4,
        "concurrent_requests_override": 5,
        "overrides_until": SOON,
        "monthly_token_budget": 6,
        "monthly_cost_budget": Decimal(7),
        "expires_at": LATER,
    }
    maker = a_key(**own)
    assert delegated_settings(maker, {}) == {**own, "scopes": DELEGATED}
    assert delegated_settings(maker, {"scopes": [], "models": [], "allowed_ips": []}) == delegated_settings(maker, {})
    assert delegated_settings(maker, {"scopes": ["keys:manage"]})["scopes"] == ["keys:manage"], "asked for by name"


def test_it_never_turns_no_scope_into_every_scope() -> None:
    """A key that may only manage keys has nothing to hand on unasked, and a key without scopes has most of them."""
    maker = a_key(scopes=["keys:manage"])
    assert refused(maker) == refused(maker, scopes=[]) == ["scopes"]
    assert refused(maker, scopes=["keys:manage"]) == []


def test_it_never_turns_no_model_into_every_model_nor_follows_a_tier_that_gets_wider() -> None:
    assert delegated_settings(a_key({"models": ["a", "b"]}), {})["models"] == ["a", "b"]
    maker = a_key({"models": ["a"]}, models=["b"])
    made = ApiKey(account=maker.account, tier=maker.tier, **delegated_settings(maker, {}))
    identity = build_authenticated_key(made, NOW)
    assert not any(identity.may_use_model(name) for name in ("a", "b"))
    assert refused(maker, models=["a"]) == ["models"]


def test_it_ends_with_a_maker_that_was_replaced() -> None:
    maker = a_key(expires_at=LATER, revoked_at=SOON)
    assert delegated_settings(maker, {})["expires_at"] == SOON
    assert refused(maker, expires_at=LATER) == ["expires_at"]


@pytest.mark.parametrize(
    ("own", "asked", "fields"),
    [
        ({}, {"scopes": ["chat"]}, []),
        ({}, {"scopes": ["chat", "summarize"]}, ["scopes"]),
        ({"models": ["a"]}, {"models": ["a"]}, []),
        ({"models": ["a"]}, {"models": ["a", "b"]}, ["models"]),
        ({"allowed_ips": ["192.0.2.0/24"]}, {"allowed_ips": ["192.0.2.7"]}, []),
        ({"allowed_ips": ["192.0.2.0/24"]}, {"allowed_ips": ["0.0.0.0/0"]}, ["allowed_ips"]),
        ({"allowed_ips": ["192.0.2.0/24"]}, {"allowed_ips": ["192.0.2.7", "198.51.100.1"]}, ["allowed_ips"]),
        ({"allowed_ips": ["2001:db8::/32"]}, {"allowed_ips": ["::/0"]}, ["allowed_ips"]),
        ({"allowed_ips": ["2001:db8::/32"]}, {"allowed_ips": ["192.0.2.7"]}, ["allowed_ips"]),
        ({}, {"requests_per_minute": 20}, []),
        ({}, {"requests_per_minute": 21}, ["requests_per_minute"]),
        ({"requests_per_minute_override": 5}, {"requests_per_minute": 6}, ["requests_per_minute"]),
        (OVER, {"requests_per_minute": 50}, []),
        ({**OVER, "overrides_until": PAST}, {"requests_per_minute": 50}, ["requests_per_minute"]),
        ({"tokens_per_minute_override": 5}, {"tokens_per_minute": 6}, ["tokens_per_minute"]),
        ({"concurrent_requests_override": 5}, {"concurrent_requests": 6}, ["concurrent_requests"]),
        ({}, {"tokens_per_minute": 10**9, "concurrent_requests": 10**6}, []),
        ({"monthly_token_budget": 5}, {"monthly_token_budget": 6}, ["monthly_token_budget"]),
        ({"monthly_token_budget": 5}, {"monthly_token_budget": 0}, []),
        ({"monthly_cost_budget": 5}, {"monthly_cost_budget": Decimal("5.000000001")}, ["monthly_cost_budget"]),
        ({"expires_at": SOON}, {"expires_at": SOON}, []),
        ({"expires_at": SOON}, {"expires_at": LATER}, ["expires_at"]),
        ({}, {"expires_at": LATER}, []),
    ],
)
def test_it_refuses_more_than_the_maker_has(own: dict[str, Any], asked: dict[str, Any], fields: list[str]) -> None:
    assert refused(a_key(**own), **asked) == fields


def test_it_names_every_field_at_once() -> None:
    maker = a_key(models=["a"], monthly_token_budget=1, expires_at=SOON)
    asked = {"scopes": ["embeddings"], "models": ["b"], "monthly_token_budget": 2, "expires_at": LATER}
    assert refused(maker, **asked) == ["expires_at", "models", "monthly_token_budget", "scopes"]


def test_it_lets_overrides_end_with_the_maker_s() -> None:
    maker = a_key(requests_per_minute_override=50, overrides_until=SOON)
    assert limits_of(maker).requests_per_minute == 50
    assert limits_of(maker, LATER).requests_per_minute == 20
    assert limits_of(maker, LATER, requests_per_minute=50).requests_per_minute == 20


@pytest.mark.parametrize(
    ("own", "other", "beyond"),
    [
        ({}, {}, []),
        ({}, {"scopes": ["chat"]}, []),
        ({}, {"scopes": ["embeddings"]}, ["scopes"]),
        ({"models": ["a"]}, {"models": ["a"]}, []),
        ({"models": ["a"]}, {}, ["models"]),
        ({"allowed_ips": ["192.0.2.0/24"]}, {"allowed_ips": ["192.0.2.7"]}, []),
        ({"allowed_ips": ["192.0.2.0/24"]}, {}, ["allowed_ips"]),
        ({"requests_per_minute_override": 5}, {}, ["requests_per_minute"]),
        ({}, {"requests_per_minute_override": 21}, ["requests_per_minute"]),
        ({"tokens_per_minute_override": 5}, {}, ["tokens_per_minute"]),
        ({"concurrent_requests_override": 5}, {"concurrent_requests_override": 6}, ["concurrent_requests"]),
        ({"monthly_token_budget": 5}, {}, ["monthly_tokens"]),
        ({"monthly_cost_budget": Decimal(5)}, {"monthly_cost_budget": Decimal(6)}, ["monthly_cost"]),
        ({"expires_at": SOON}, {}, ["expires_at"]),
        ({"expires_at": SOON}, {"expires_at": LATER}, ["expires_at"]),
        ({"expires_at": LATER}, {"expires_at": SOON}, []),
        ({"revoked_at": SOON}, {}, ["expires_at"]),
    ],
)
def test_it_names_what_a_key_has_beyond_another(own: dict[str, Any], other: dict[str, Any], beyond: list[str]) -> None:
    assert exceeds(a_key(**other), a_key(**own)) == beyond


def test_it_compares_tiers_and_limits_that_are_higher_when_overrides_have_ended() -> None:
    small, large = {"max_output_tokens": 10, "models": ["a"]}, {"requests_per_minute": None}
    assert exceeds(a_key(large), a_key(small)) == ["models", "max_output_tokens", "requests_per_minute"]
    assert exceeds(a_key(small), a_key(large)) == []
    assert exceeds(a_key({"models": ["a"]}, models=["b"]), a_key({"models": ["a"]})) == [], "it has no model"
    throttled = a_key(requests_per_minute_override=5, overrides_until=SOON)
    assert exceeds(throttled, a_key({"requests_per_minute": 5})) == ["requests_per_minute"]
    assert exceeds(a_key(), a_key(**OVER, overrides_until=SOON)) == []

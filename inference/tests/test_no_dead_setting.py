"""Every field of tier, account and key has an effect that a caller can see: a setting without one lies to operators.

A field that is added without a line here fails the first test.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.utils import timezone

from accounts.key_cache import key_cache
from accounts.models import Account, ApiKey, Tier
from inference.fake_provider import FakeUpstream
from inference.tests.fixtures import MODEL, Api
from monitoring.payload_log import keeper

Effect = Callable[[Api, FakeUpstream], Any]


def told(field: str, *, owner: str) -> Effect:
    """Observe a limit as /usage tells it."""

    def observe(api: Api, upstream: FakeUpstream) -> Any:
        limits = api.get("/usage").json()["limits"]
        return next(limit["limit"] for limit in limits if (limit["name"], limit["owner"]) == (field, owner))

    return observe


def answered(api: Api, upstream: FakeUpstream) -> int:
    """Observe the status of a question."""
    return api.chat().status_code


def answered_anew(api: Api, upstream: FakeUpstream) -> int:
    """Observe the status of a question that no cache can answer: an answer from there costs nothing."""
    return api.chat(headers={"Cache-Control": "no-store"}).status_code


def second_outcome(api: Api, upstream: FakeUpstream) -> str:
    """Observe whether the same question again comes from the cache."""
    api.chat()
    return api.chat()["X-Cache"]


def second_warm_outcome(api: Api, upstream: FakeUpstream) -> str:
    """Observe whether the same question of /v1 again, at a temperature, comes from the cache."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "temperature": 1}
    api.post("/v1/chat/completions", body)
    return api.post("/v1/chat/completions", body)["X-Cache"]


def most_output(api: Api, upstream: FakeUpstream) -> int:
    """Observe the maximum that is sent upstream."""
    upstream.reset()
    api.chat("a new question")
    most: int = upstream.requests[0].body["max_tokens"]
    return most


def new_key(api: Api, upstream: FakeUpstream) -> int:
    """Observe whether the account may have another key."""
    return api.post("/keys", {"name": f"n{timezone.now().timestamp()}"}).status_code


def limit_headers(api: Api, upstream: FakeUpstream) -> str | None:
    """Observe the limit that an answer's headers tell."""
    return api.get("/v1/models").headers.get("X-RateLimit-Limit")


def content_waiting(api: Api, upstream: FakeUpstream) -> int:
    """Observe how much content waits to be written after a question."""
    keeper._waiting.clear()
    api.chat()
    return len(keeper._waiting)


PAST = timezone.now() - timedelta(days=1)
#: By model and field: a value, and what changes with it.
EFFECTS: dict[type, dict[str, tuple[Any, Effect]]] = {
    Tier: {
        "requests_per_minute": (77, told("requests_per_minute", owner="key")),
        "tokens_per_minute": (77_777, told("tokens_per_minute", owner="key")),
        "concurrent_requests": (77, told("concurrent_requests", owner="key")),
        "cache_enabled": (False, second_outcome),
        "cache_any_temperature": (True, second_warm_outcome),
        "max_output_tokens": (7, most_output),
        "models": (["another"], answered),
    },
    Account: {
        "requests_per_minute": (77, told("requests_per_minute", owner="account")),
        "tokens_per_minute": (77_777, told("tokens_per_minute", owner="account")),
        "concurrent_requests": (77, told("concurrent_requests", owner="account")),
        "monthly_token_budget": (1, answered_anew),
        "monthly_cost_budget": (Decimal(0), answered_anew),
        "is_active": (False, answered),
        "max_keys": (1, new_key),
        "logs_content": (True, content_waiting),
    },
    ApiKey: {
        "requests_per_minute_override": (77, limit_headers),
        "tokens_per_minute_override": (77_777, told("tokens_per_minute", owner="key")),
        "concurrent_requests_override": (77, told("concurrent_requests", owner="key")),
        "monthly_token_budget": (1, answered_anew),
        "monthly_cost_budget": (Decimal(0), answered_anew),
        "scopes": (["usage"], answered),
        "models": (["another"], answered),
        "allowed_ips": (["192.0.2.1"], answered),
        "expires_at": (PAST, answered),
        "revoked_at": (PAST, answered),
    },
}
#: What is no setting: names, bookkeeping, and `overrides_until`, which has a test of its own.
NO_SETTINGS = {
    Tier: {"id", "name"},
    Account: {"id", "name", "display_name", "contact", "metadata", "created_at", "cache_generations"},
    ApiKey: {"id", "account", "tier", "name", "prefix", "last_four", "digest", "pepper_id", "successor", "lineage_id"}
    | {"maker", "created_at", "last_used_at", "overrides_until"},
}


@pytest.mark.parametrize("kind", EFFECTS)
def test_it_knows_every_field(kind: type[Tier | Account | ApiKey]) -> None:
    fields = {field.name for field in kind._meta.concrete_fields}
    assert fields == set(EFFECTS[kind]) | NO_SETTINGS[kind]


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind, fields in EFFECTS.items() for field in fields], ids=str
)
def test_it_changes_what_a_caller_sees(
    api: Api,
    upstream: FakeUpstream,
    kind: type[Tier | Account | ApiKey],
    field: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(keeper._thread, "start", lambda: False)
    value, effect = EFFECTS[kind][field]
    ApiKey.objects.update(scopes=["chat", "usage", "keys:manage"])
    key_cache.forget()
    before = effect(api, upstream)
    kind._default_manager.update(**{field: value})
    key_cache.forget()
    after = effect(api, upstream)
    assert after != before, f"{kind.__name__}.{field} = {value} changes nothing"


def test_it_ends_overrides_when_they_are_over(api: Api, upstream: FakeUpstream) -> None:
    ApiKey.objects.update(requests_per_minute_override=77)
    key_cache.forget()
    assert limit_headers(api, upstream) == "77"
    ApiKey.objects.update(overrides_until=PAST)
    key_cache.forget()
    assert limit_headers(api, upstream) == "5"


def test_it_names_a_model_that_exists(api: Api, upstream: FakeUpstream) -> None:
    Tier.objects.update(models=[MODEL])
    key_cache.forget()
    assert answered(api, upstream) == 200

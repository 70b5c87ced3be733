"""/keys: an account lists, makes, rotates and revokes its own keys, and nobody gets more than he has."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from django.test import Client
from django.utils import timezone
from pytest_django import DjangoCaptureOnCommitCallbacks

from accounts.key_cache import key_cache
from accounts.models import ApiKey, AuditEntry
from accounts.tests.factories import Cast, IssuedKey, make_key, make_tier, secret_part, stored_text, works
from accounts.validators import SCOPES

if TYPE_CHECKING:
    from django.test.client import _MonkeyPatchedWSGIResponse as Answer

pytestmark = pytest.mark.django_db


def send(method: str, path: str, who: IssuedKey, body: Any = None) -> Answer:
    """Send a request with a key; a body goes as JSON."""
    data = b"" if body is None else json.dumps(body).encode()
    return Client().generic(method, path, data, "application/json", headers={"X-API-Key": who.plain})


def error_fields(answer: Answer) -> list[str]:
    """Return the fields that a 400 names."""
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), answer.content
    return sorted(answer.json()["errors"])


@pytest.fixture
def manager(cast: Cast) -> IssuedKey:
    """Make a key of the owner's account that may manage keys."""
    return make_key(account=cast.owner.key.account, name="manager", scopes=[*SCOPES], requests_per_minute_override=99)


PATHS = (
    ("GET", "/keys"), ("POST", "/keys"), ("GET", "/keys/{}"), ("POST", "/keys/{}/revoke"), ("POST", "/keys/{}/rotate"),
)  # fmt: skip
ONE_LINE = "Must be one line, without control, direction or zero-width characters."


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_it_wants_the_scope_that_nobody_has_by_default(cast: Cast, method: str, path: str) -> None:
    answer = send(method, path.format(cast.colleague.key.pk), cast.owner, {"name": "new"})
    assert (answer.status_code, answer.json()["code"]) == (403, "scope_denied")
    assert Client().generic(method, path.format(1)).status_code == 401


def test_it_knows_no_key_of_another_account_and_no_other_method(cast: Cast, manager: IssuedKey) -> None:
    for method, path in PATHS[2:]:
        for number in (cast.stranger.key.pk, cast.disabled.key.pk, 999_999):
            answer = send(method, path.format(number), manager, {})
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), (method, path)
    cast.stranger.key.refresh_from_db()
    assert (cast.stranger.key.revoked_at, cast.stranger.key.successor) == (None, None)
    found = {key["name"]: key["state"] for key in send("GET", "/keys/", manager).json()}
    active = dict.fromkeys(("owner", "colleague", "manager"), "active")
    assert found == {**active, "revoked": "revoked", "expired": "expired"}
    for method, path in (("DELETE", "/keys"), ("DELETE", f"/keys/{manager.key.pk}"), ("GET", "/keys/1/revoke")):
        assert send(method, path, manager).status_code == 405


def test_it_makes_a_key_like_the_one_that_asks_and_shows_its_secret_once(manager: IssuedKey) -> None:
    answer = send("POST", "/keys", manager, {"name": "ci", "requests_per_minute": 2})
    told = answer.json()
    assert (answer.status_code, answer["Cache-Control"]) == (201, "private, no-store")
    assert (told["name"], told["tier"], told["state"], told["monthly_token_budget"]) == ("ci", "free", "active", None)
    assert told["scopes"] == ["chat", "summarize", "embeddings", "usage"]
    identity = key_cache.find(told["key"])
    assert identity is not None
    assert (identity.account_name, identity.key_name) == ("acme", "ci")
    shown = send("GET", f"/keys/{told['id']}", manager)
    assert "key" not in shown.json()
    kept = shown.content.decode() + send("GET", "/keys", manager).content.decode() + stored_text()
    assert secret_part(told["key"]) not in kept
    entry = AuditEntry.objects.get(target_id=str(told["id"]))
    assert (entry.actor, entry.action) == ("key:acme/manager", "created")
    assert entry.after["requests_per_minute_override"] == 2
    assert "digest" not in entry.after


def test_it_makes_keys_that_may_do_less(manager: IssuedKey) -> None:
    asked = {
        "name": "narrow",
        "scopes": ["chat"],
        "models": ["gpt-3.5-turbo"],
        "allowed_ips": ["192.0.2.0/28", "2001:db8::/64"],
        "requests_per_minute": 1,
        "tokens_per_minute": 2,
        "concurrent_requests": 3,
        "monthly_token_budget": 4,
        "monthly_cost_budget": "0.000000005",
    }
    end = (timezone.now() + timedelta(days=3)).isoformat()
    told = send("POST", "/keys", manager, {**asked, "expires_at": end}).json()
    assert {name: told[name] for name in asked} == asked
    assert told["expires_at"].startswith(end[:19])


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"name": 5}, "name", "Must be a text."),
        ({"name": True}, "name", "Must be a text."),
        ({"name": "two\nlines"}, "name", ONE_LINE),
        ({"name": "two\u2028lines"}, "name", ONE_LINE),
        ({"name": "bell\u0007"}, "name", ONE_LINE),
        ({"name": "a", "scopes": ["chat", "everything"]}, "scopes[1]", '"everything" is not a valid choice.'),
        ({"name": "a", "models": [5]}, "models[0]", "Must be a text."),
        ({"name": "a", "model_budgets": [{"monthly_token_budget": 1}]}, "model_budgets[0].model", "This field"),
        ({"name": "a", "model_budgets": [{"model": "m"}]}, "model_budgets[0]", "Set a budget"),
        ({"name": "a", "expires_at": "2001-01-01T00:00:00Z"}, "expires_at", "This time is in the past"),
    ],
)
def test_it_says_what_is_wrong_where(manager: IssuedKey, body: Any, field: str, message: str) -> None:
    answer = send("POST", "/keys", manager, body)
    assert error_fields(answer) == [field]
    (text,) = answer.json()["errors"][field]
    assert text.startswith(message)
    assert not ApiKey.objects.filter(name=body["name"]).exists()


def test_it_takes_a_name_of_any_script_and_no_body_without_one(manager: IssuedKey) -> None:
    for name in ("naïve café", "鍵", "💻 laptop", "a'; --"):
        assert send("POST", "/keys", manager, {"name": name}).json()["name"] == name
    before = ApiKey.objects.count()
    bodies: list[Any] = [[], "name", {}, {"name": ""}, {"name": "x" * 101}, {"name": "owner"}, {"name": 7 * [1]}]
    for body in bodies:
        assert send("POST", "/keys", manager, body).status_code == 400, body
    assert ApiKey.objects.count() == before


def test_it_lets_nobody_reach_beyond_himself(cast: Cast) -> None:
    limited = make_key(
        account=cast.owner.key.account,
        tier=make_tier("busy", requests_per_minute=1_000),
        scopes=["chat", "keys:manage"],
        models=["gpt-3.5-turbo"],
        allowed_ips=["127.0.0.1"],
        requests_per_minute_override=300,
        tokens_per_minute_override=100,
        concurrent_requests_override=2,
        monthly_token_budget=1_000,
        monthly_cost_budget=Decimal(1),
        expires_at=timezone.now() + timedelta(days=1),
    )
    for field, values in {
        "scopes": (["summarize"], ["everything"]),
        "models": (["gpt-4"],),
        "allowed_ips": (["0.0.0.0/0"], ["192.0.2.9/24"]),
        "requests_per_minute": (301, 0, None),
        "tokens_per_minute": (101,),
        "concurrent_requests": (3,),
        "monthly_token_budget": (1_001, -1),
        "monthly_cost_budget": ("1.000000001", "NaN"),
        "expires_at": ("2999-01-01T00:00:00Z", None),
        "tier": ("premium",),
        "account": ("globex",),
        "overrides_until": ("2999-01-01T00:00:00Z",),
        "revoked_at": (None,),
        "digest": ("0" * 64,),
        "max_output_tokens": (10**6,),
    }.items():
        for value in values:
            (told,) = error_fields(send("POST", "/keys", limited, {"name": "more", field: value}))
            assert told.partition("[")[0] == field
    assert not ApiKey.objects.filter(name="more").exists()


def test_it_replaces_a_key_and_lets_both_work_for_a_day(cast: Cast, manager: IssuedKey) -> None:
    path, key = f"/keys/{cast.owner.key.pk}/rotate", cast.owner.key
    for wrong in ({"grace_seconds": -1}, {"grace_seconds": 90 * 86_400 + 1}, {"grace_seconds": "x"}, {"grace": 0}):
        assert error_fields(send("POST", path, manager, wrong))
    assert ApiKey.objects.get(pk=key.pk).revoked_at is None
    answer = send("POST", path, manager)
    told = answer.json()
    assert (answer.status_code, told["name"]) == (201, "owner-2")
    assert key_cache.find(told["key"])
    assert cast.owner.works()
    key.refresh_from_db()
    assert key.revoked_at is not None
    assert timedelta(hours=23) < key.revoked_at - timezone.now() < timedelta(hours=24)
    assert secret_part(told["key"]) not in stored_text()
    assert AuditEntry.objects.get(action="rotated").actor == "key:acme/manager"
    send("POST", f"/keys/{told['id']}/rotate", manager, {"grace_seconds": 0})
    assert not works(told["key"])


def test_it_rotates_the_key_that_asks_and_none_that_is_stronger_or_does_not_work(
    cast: Cast, manager: IssuedKey
) -> None:
    premium = make_tier("premium", requests_per_minute=100)
    stronger = make_key(account=manager.key.account, tier=premium, name="strong").key
    answer = send("POST", f"/keys/{stronger.pk}/rotate", manager)
    assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")
    assert "requests_per_minute" in answer.json()["detail"]
    stronger.refresh_from_db()
    assert stronger.successor is None
    for gone in (cast.revoked, cast.expired):
        assert error_fields(send("POST", f"/keys/{gone.key.pk}/rotate", manager)) == ["non_field_errors"]
    told = send("POST", f"/keys/{manager.key.pk}/rotate", manager, {"grace_seconds": 60}).json()
    assert told["scopes"] == manager.key.scopes
    again = send("POST", f"/keys/{manager.key.pk}/rotate", manager)
    assert "replaced" in str(again.json()["errors"])


def test_it_stops_a_key_at_once_and_for_good(
    cast: Cast, manager: IssuedKey, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    assert key_cache.find(cast.colleague.plain)
    for _ in range(2):
        with django_capture_on_commit_callbacks(execute=True):
            answer = send("POST", f"/keys/{cast.colleague.key.pk}/revoke", manager)
        assert (answer.status_code, answer.json()["state"]) == (200, "revoked")
        assert key_cache.find(cast.colleague.plain) is None
        assert AuditEntry.objects.get(action="revoked").actor == "key:acme/manager"
    assert send("POST", f"/keys/{manager.key.pk}/revoke", manager).json()["state"] == "revoked"
    key_cache.forget()
    assert send("GET", "/keys", manager).status_code == 401

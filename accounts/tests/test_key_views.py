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

from accounts import services
from accounts.key_cache import key_cache
from accounts.models import ApiKey, AuditEntry
from accounts.tests.factories import (
    ACTOR,
    Cast,
    IssuedKey,
    make_account,
    make_expired_key,
    make_key,
    make_tier,
    secret_part,
    stored_text,
)

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
    return make_key(
        account=cast.owner.key.account,
        name="manager",
        scopes=["chat", "summarize", "embeddings", "usage", "keys:manage"],
    )


class TestAccess:
    PATHS = (
        ("GET", "/keys"),
        ("POST", "/keys"),
        ("GET", "/keys/{}"),
        ("POST", "/keys/{}/revoke"),
        ("POST", "/keys/{}/rotate"),
    )

    @pytest.mark.parametrize(("method", "path"), PATHS)
    def test_it_wants_the_scope_that_nobody_has_by_default(self, cast: Cast, method: str, path: str) -> None:
        answer = send(method, path.format(cast.colleague.key.pk), cast.owner, {"name": "new"})
        assert (answer.status_code, answer.json()["code"]) == (403, "scope_denied")
        assert Client().generic(method, path.format(1)).status_code == 401

    @pytest.mark.parametrize(("method", "path"), [each for each in PATHS if "{}" in each[1]])
    def test_it_knows_no_key_of_another_account(self, cast: Cast, manager: IssuedKey, method: str, path: str) -> None:
        for number in (cast.stranger.key.pk, cast.disabled.key.pk, 999_999):
            answer = send(method, path.format(number), manager, {})
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        cast.stranger.key.refresh_from_db()
        assert cast.stranger.key.revoked_at is None
        assert cast.stranger.key.successor is None

    def test_it_lists_the_account_s_keys_alone(self, cast: Cast, manager: IssuedKey) -> None:
        found = send("GET", "/keys/", manager).json()
        assert {key["name"]: key["state"] for key in found} == {
            "owner": "active",
            "colleague": "active",
            "manager": "active",
            "revoked": "revoked",
            "expired": "expired",
        }

    def test_it_refuses_other_methods(self, manager: IssuedKey) -> None:
        for method, path in (("DELETE", "/keys"), ("DELETE", f"/keys/{manager.key.pk}"), ("GET", "/keys/1/revoke")):
            assert send(method, path, manager).status_code == 405


class TestCreation:
    def test_it_makes_a_key_like_the_one_that_asks(self, manager: IssuedKey) -> None:
        answer = send("POST", "/keys", manager, {"name": "ci"})
        assert answer.status_code == 201
        told = answer.json()
        assert (told["name"], told["tier"], told["state"], told["monthly_token_budget"]) == (
            "ci",
            "free",
            "active",
            None,
        )
        assert told["scopes"] == ["chat", "summarize", "embeddings", "usage"]
        identity = key_cache.find(told["key"])
        assert identity is not None
        assert (identity.account_name, identity.key_name) == ("acme", "ci")

    def test_it_shows_the_secret_once_and_keeps_it_nowhere(self, manager: IssuedKey) -> None:
        answer = send("POST", "/keys", manager, {"name": "ci"})
        told = answer.json()
        secret = secret_part(told["key"])
        assert answer["Cache-Control"] == "private, no-store"
        assert secret not in send("GET", "/keys", manager).content.decode()
        assert secret not in send("GET", f"/keys/{told['id']}", manager).content.decode()
        assert "key" not in send("GET", f"/keys/{told['id']}", manager).json()
        assert secret not in stored_text()

    def test_it_writes_who_made_it_into_the_audit_log(self, manager: IssuedKey) -> None:
        told = send("POST", "/keys", manager, {"name": "ci", "requests_per_minute": 2}).json()
        entry = AuditEntry.objects.get(target_id=str(told["id"]))
        assert (entry.actor, entry.action) == ("key:acme/manager", "created")
        assert entry.after["requests_per_minute_override"] == 2
        assert "digest" not in entry.after

    def test_it_makes_keys_that_may_do_less(self, manager: IssuedKey) -> None:
        end = (timezone.now() + timedelta(days=3)).isoformat()
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
            "expires_at": end,
        }
        told = send("POST", "/keys", manager, asked).json()
        assert {name: told[name] for name in asked if name != "expires_at"} == {
            name: value for name, value in asked.items() if name != "expires_at"
        }
        assert told["expires_at"].startswith(end[:19])

    @pytest.mark.parametrize(
        ("body", "field", "message"),
        [
            ({"name": 5}, "name", "Must be a text."),
            ({"name": True}, "name", "Must be a text."),
            ({"name": "two\nlines"}, "name", "Must be one line, without control, direction or zero-width characters."),
            (
                {"name": "two\u2028lines"},
                "name",
                "Must be one line, without control, direction or zero-width characters.",
            ),
            ({"name": "bell\u0007"}, "name", "Must be one line, without control, direction or zero-width characters."),
            ({"name": "a", "scopes": ["chat", "everything"]}, "scopes[1]", '"everything" is not a valid choice.'),
            ({"name": "a", "models": [5]}, "models[0]", "Must be a text."),
            ({"name": "a", "model_budgets": [{"monthly_token_budget": 1}]}, "model_budgets[0].model", "This field"),
            ({"name": "a", "model_budgets": [{"model": "m"}]}, "model_budgets[0]", "Set a budget"),
        ],
    )
    def test_it_says_what_is_wrong_where(self, manager: IssuedKey, body: Any, field: str, message: str) -> None:
        answer = send("POST", "/keys", manager, body)
        assert error_fields(answer) == [field]
        (text,) = answer.json()["errors"][field]
        assert text.startswith(message)
        assert not ApiKey.objects.filter(name=body["name"]).exists()

    @pytest.mark.parametrize("name", ["naïve café", "鍵", "💻 laptop", "a'; --"])
    def test_it_takes_a_name_of_any_script(self, manager: IssuedKey, name: str) -> None:
        assert send("POST", "/keys", manager, {"name": name}).json()["name"] == name

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("scopes", ["chat", "keys:manage"]),
            ("scopes", ["everything"]),
            ("models", ["gpt-4"]),
            ("allowed_ips", ["0.0.0.0/0"]),
            ("allowed_ips", ["192.0.2.9/24"]),
            ("requests_per_minute", 4),
            ("requests_per_minute", 0),
            ("requests_per_minute", None),
            ("tokens_per_minute", 101),
            ("concurrent_requests", 3),
            ("monthly_token_budget", 1_001),
            ("monthly_token_budget", -1),
            ("monthly_cost_budget", "1.000000001"),
            ("monthly_cost_budget", "NaN"),
            ("expires_at", "2999-01-01T00:00:00Z"),
            ("expires_at", None),
            ("tier", "premium"),
            ("account", "globex"),
            ("overrides_until", "2999-01-01T00:00:00Z"),
            ("revoked_at", None),
            ("digest", "0" * 64),
            ("max_output_tokens", 10**6),
        ],
    )
    def test_it_lets_nobody_reach_beyond_himself(self, cast: Cast, field: str, value: Any) -> None:
        limited = make_key(
            account=cast.owner.key.account,
            scopes=["chat", "keys:manage"],
            models=["gpt-3.5-turbo"],
            allowed_ips=["127.0.0.1"],
            requests_per_minute_override=3,
            tokens_per_minute_override=100,
            concurrent_requests_override=2,
            monthly_token_budget=1_000,
            monthly_cost_budget=Decimal(1),
            expires_at=timezone.now() + timedelta(days=1),
        )
        asked = {"name": "more", field: value}
        if field == "scopes" and "keys:manage" in value:
            asked["scopes"] = ["summarize"]
        (told,) = error_fields(send("POST", "/keys", limited, asked))
        assert told.partition("[")[0] == field
        assert not ApiKey.objects.filter(name="more").exists()

    @pytest.mark.parametrize(
        "body", [[], "name", {}, {"name": ""}, {"name": "x" * 101}, {"name": "owner"}, {"name": 7 * [1]}]
    )
    def test_it_refuses_bodies_that_are_none(self, manager: IssuedKey, body: Any) -> None:
        before = ApiKey.objects.count()
        assert send("POST", "/keys", manager, body).status_code == 400
        assert ApiKey.objects.count() == before

    def test_it_respects_the_account_s_number_of_keys(self, cast: Cast, manager: IssuedKey) -> None:
        account = cast.owner.key.account
        account.max_keys = 4
        services.account_save(account=account, actor=ACTOR)
        assert send("POST", "/keys", manager, {"name": "fourth"}).status_code == 201
        answer = send("POST", "/keys", manager, {"name": "fifth"})
        assert "4 usable keys" in str(answer.json()["errors"]["non_field_errors"])
        assert send("POST", f"/keys/{cast.colleague.key.pk}/revoke", manager).status_code == 200
        assert send("POST", "/keys", manager, {"name": "fifth"}).status_code == 201

    def test_it_makes_no_key_that_is_expired_already(self, manager: IssuedKey) -> None:
        past = (timezone.now() - timedelta(seconds=1)).isoformat()
        assert error_fields(send("POST", "/keys", manager, {"name": "late", "expires_at": past})) == ["expires_at"]

    def test_it_takes_no_key_from_one_that_is_gone(self, cast: Cast) -> None:
        managing = {"scopes": ["keys:manage"]}
        expired = make_expired_key(make_account())
        ApiKey.objects.update(**managing)
        for gone in (cast.revoked, expired, cast.disabled):
            assert send("POST", "/keys", gone, {"name": "new"}).status_code == 401


class TestRotation:
    def test_it_replaces_a_key_and_lets_both_work(self, cast: Cast, manager: IssuedKey) -> None:
        answer = send("POST", f"/keys/{cast.owner.key.pk}/rotate", manager, {"grace_seconds": 3_600})
        assert answer.status_code == 201
        told = answer.json()
        assert told["name"] == "owner-2"
        assert key_cache.find(told["key"])
        assert key_cache.find(cast.owner.plain)
        assert secret_part(told["key"]) not in stored_text()
        assert AuditEntry.objects.get(action="rotated").actor == "key:acme/manager"

    def test_it_gives_a_day_of_grace_unless_asked_otherwise(self, cast: Cast, manager: IssuedKey) -> None:
        send("POST", f"/keys/{cast.owner.key.pk}/rotate", manager)
        cast.owner.key.refresh_from_db()
        assert cast.owner.key.revoked_at is not None
        assert timedelta(hours=23) < cast.owner.key.revoked_at - timezone.now() < timedelta(hours=24)

    def test_it_stops_the_old_key_at_once_without_grace(self, cast: Cast, manager: IssuedKey) -> None:
        send("POST", f"/keys/{cast.owner.key.pk}/rotate", manager, {"grace_seconds": 0})
        assert key_cache.find(cast.owner.plain) is None

    @pytest.mark.parametrize(
        "body", [{"grace_seconds": -1}, {"grace_seconds": 90 * 86_400 + 1}, {"grace_seconds": "x"}, {"grace": 0}]
    )
    def test_it_refuses_other_grace_periods(self, cast: Cast, manager: IssuedKey, body: Any) -> None:
        assert error_fields(send("POST", f"/keys/{cast.owner.key.pk}/rotate", manager, body))
        cast.owner.key.refresh_from_db()
        assert cast.owner.key.revoked_at is None

    def test_it_hands_nobody_a_stronger_key(self, manager: IssuedKey) -> None:
        stronger = make_key(
            account=manager.key.account, tier=make_tier("premium", requests_per_minute=20), name="strong"
        )
        answer = send("POST", f"/keys/{stronger.key.pk}/rotate", manager)
        assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")
        assert "requests_per_minute" in answer.json()["detail"]
        stronger.key.refresh_from_db()
        assert stronger.key.successor is None

    def test_it_rotates_the_key_that_asks(self, manager: IssuedKey) -> None:
        told = send("POST", f"/keys/{manager.key.pk}/rotate", manager, {"grace_seconds": 60}).json()
        assert told["scopes"] == manager.key.scopes
        again = send("POST", f"/keys/{manager.key.pk}/rotate", manager)
        assert "replaced" in str(again.json()["errors"])

    @pytest.mark.parametrize("gone", ["revoked", "expired"])
    def test_it_rotates_no_key_that_does_not_work(self, cast: Cast, manager: IssuedKey, gone: str) -> None:
        assert error_fields(send("POST", f"/keys/{getattr(cast, gone).key.pk}/rotate", manager)) == ["non_field_errors"]


class TestRevocation:
    def test_it_stops_a_key_at_once(
        self,
        cast: Cast,
        manager: IssuedKey,
        django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
    ) -> None:
        assert key_cache.find(cast.colleague.plain)
        with django_capture_on_commit_callbacks(execute=True):
            answer = send("POST", f"/keys/{cast.colleague.key.pk}/revoke", manager)
        assert (answer.status_code, answer.json()["state"]) == (200, "revoked")
        assert key_cache.find(cast.colleague.plain) is None
        assert AuditEntry.objects.get(action="revoked").actor == "key:acme/manager"

    def test_it_leaves_a_revoked_key_as_it_is(self, cast: Cast, manager: IssuedKey) -> None:
        answer = send("POST", f"/keys/{cast.revoked.key.pk}/revoke", manager)
        assert (answer.status_code, answer.json()["state"]) == (200, "revoked")
        assert not AuditEntry.objects.filter(action="revoked").exists()

    def test_it_lets_a_key_revoke_itself(self, manager: IssuedKey) -> None:
        assert send("POST", f"/keys/{manager.key.pk}/revoke", manager).json()["state"] == "revoked"
        key_cache.forget()
        assert send("GET", "/keys", manager).status_code == 401

"""Writes of accounts, tiers and keys: what they store, refuse, and leave in the audit log."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone
from pytest_django import Settings

from accounts import services
from accounts.keys import digests
from accounts.models import Account, ApiKey, AuditEntry, Tier
from accounts.tests.factories import ACTOR, make_account, make_key, make_tier, secret_part, stored_text, works

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)


def actions(target: object) -> list[str]:
    """List what the log says was done to an object, oldest first."""
    return list(AuditEntry.objects.filter(target=str(target)).order_by("pk").values_list("action", flat=True))


def test_it_makes_an_account_once_and_only_by_a_slug() -> None:
    first = services.account_ensure(name="acme", actor=ACTOR)
    assert services.account_ensure(name="acme", actor=ACTOR) == first
    assert actions(first) == ["created"]
    for name in ("", "with space", "x" * 101, "a/b"):
        with pytest.raises(ValidationError):
            services.account_ensure(name=name, actor=ACTOR)
    assert Account.objects.count() == 1
    first.requests_per_minute = 0
    with pytest.raises(ValidationError):
        services.account_save(account=first, actor=ACTOR)


def test_it_disables_and_enables_all_keys_of_an_account_and_changes_nothing_else() -> None:
    issued = make_key()
    account = Account.objects.get()
    account.contact = "new@acme.test"
    services.account_save(account=account, actor=ACTOR)
    for active in (False, True):
        services.account_set_active(account=issued.key.account, active=active, actor=ACTOR)
        assert issued.works() is active
    assert Account.objects.get().contact == "new@acme.test"
    assert actions(account) == ["created", "changed", "disabled", "enabled"]


def test_it_makes_a_tier_once_and_leaves_it_as_it_is() -> None:
    services.tier_ensure(name="free", actor=ACTOR, requests_per_minute=5)
    services.tier_ensure(name="free", actor=ACTOR, requests_per_minute=500)
    assert Tier.objects.get().requests_per_minute == 5
    assert actions("free") == ["created"]


class TestCreation:
    def test_it_stores_the_digest_and_shows_neither_it_nor_the_key(self) -> None:
        key, plain = (issued := make_key(name="ci")).key, issued.plain
        assert works(plain)
        assert (key.prefix, key.last_four, key.digest) == (plain[:12], plain[-4:], digests(plain)[0])
        assert actions(key) == ["created"]
        shown = f"{key} {key!r}"
        assert secret_part(plain) not in shown + stored_text()
        assert key.digest not in shown

    @pytest.mark.parametrize(
        "optional",
        [
            {"name": "taken"},
            {"scopes": ["everything"]},
            {"allowed_ips": ["192.0.2.7/24"]},
            {"models": [1]},
            {"monthly_cost_budget": Decimal(-1)},
            {"requests_per_minute_override": 0},
            {"expires_at": timezone.now() - DAY},
        ],
    )
    def test_it_refuses_settings_that_make_no_sense(self, optional: Any) -> None:
        account = make_key(name="taken").key.account
        with pytest.raises(ValidationError):
            make_key(account=account, **optional)
        assert ApiKey.objects.count() == 1
        make_key(name="taken")  # another account's business

    def test_it_counts_usable_keys_only_against_the_account_s_number(self) -> None:
        account = make_account(max_keys=2)
        first, second = make_key(account=account), make_key(account=account)
        with pytest.raises(ValidationError, match="maximum of usable keys \\(2\\)"):
            make_key(account=account)
        services.api_key_revoke(key=first.key, actor=ACTOR)
        make_key(account=account)
        ApiKey.objects.filter(pk=second.key.pk).update(expires_at=timezone.now() - DAY)
        make_key(account=account)

    def test_it_imports_a_known_text_once_and_in_development_only(self, settings: Settings) -> None:
        account, tier = make_account("demo"), make_tier()
        settings.ALLOW_PLAIN_KEYS = False
        with pytest.raises(ValidationError, match="begin with ak_"):
            services.api_key_import(account=account, tier=tier, name="dev", plain="dev_key_123", actor=ACTOR)
        settings.ALLOW_PLAIN_KEYS = True
        for _ in range(2):
            services.api_key_import(account=account, tier=tier, name="dev", plain="dev_key_123", actor=ACTOR)
        assert works("dev_key_123")
        assert ApiKey.objects.get().masked == "dev…123"
        assert "dev_key_123" not in stored_text()


class TestRotation:
    def test_it_hands_over_every_setting_that_a_key_has(self) -> None:
        old = make_key(
            scopes=["chat"],
            models=["m"],
            allowed_ips=["192.0.2.0/24"],
            requests_per_minute_override=3,
            overrides_until=timezone.now() + DAY,
            expires_at=timezone.now() + DAY,
            monthly_token_budget=100,
            monthly_cost_budget=Decimal("1.5"),
        ).key
        new, plain = services.api_key_rotate(key=old, grace=DAY, actor=ACTOR)
        own = {"id", "name", "prefix", "last_four", "digest", "pepper_id", "successor", "created_at", "revoked_at"}
        for field in {field.name for field in ApiKey._meta.concrete_fields} - own - {"last_used_at", "lineage_id"}:
            assert getattr(new, field) == getattr(old, field), field
        old.refresh_from_db()
        assert old.successor == new
        assert (actions(old), actions(new)) == (["created", "rotated"], ["created"])
        assert secret_part(plain) not in stored_text()

    def test_it_numbers_successors_and_lets_them_share_the_limits_of_the_first(self) -> None:
        first = make_key(name="ci").key
        second, _ = services.api_key_rotate(key=first, grace=DAY, actor=ACTOR)
        make_key(account=first.account, name="ci-3")
        fourth, _ = services.api_key_rotate(key=second, grace=DAY, actor=ACTOR)
        assert (second.name, fourth.name) == ("ci-2", "ci-4")
        assert {key.limits_id for key in (first, second, fourth)} == {first.pk}
        long, _ = services.api_key_rotate(key=make_key(name="n" * 100).key, grace=DAY, actor=ACTOR)
        assert long.name == "n" * 98 + "-2"

    @pytest.mark.parametrize("grace", [timedelta(seconds=-1), timedelta(days=91)])
    def test_it_refuses_a_grace_period_that_is_none(self, grace: timedelta) -> None:
        with pytest.raises(ValidationError, match="between 0 and 90 days"):
            services.api_key_rotate(key=make_key().key, grace=grace, actor=ACTOR)

    def test_it_needs_no_room_and_makes_none(self) -> None:
        account = make_account(max_keys=1)
        old = make_key(account=account)
        new, _ = services.api_key_rotate(key=old.key, grace=DAY, actor=ACTOR)
        with pytest.raises(ValidationError, match="still works"):
            services.api_key_rotate(key=new, grace=DAY, actor=ACTOR)
        assert services.api_key_revoke(key=old.key, actor=ACTOR), "which ends the grace period"
        assert not old.works()
        services.api_key_rotate(key=new, grace=DAY, actor=ACTOR)


class TestChanges:
    def test_it_revokes_for_good_a_key_whose_row_would_no_longer_be_valid(self) -> None:
        issued = make_key()
        ApiKey.objects.update(scopes=["of-an-older-version"])
        assert services.api_key_revoke(key=issued.key, actor=ACTOR)
        before = ApiKey.objects.get().revoked_at
        assert not services.api_key_revoke(key=issued.key, actor=ACTOR)
        assert ApiKey.objects.get().revoked_at == before
        assert actions(issued.key) == ["created", "revoked"]
        assert not issued.works()

    def test_it_does_not_bring_a_revoked_key_back(self) -> None:
        issued = make_key()
        stale = ApiKey.objects.get()
        services.api_key_revoke(key=issued.key, actor=ACTOR)
        stale.name = "renamed"
        services.api_key_save(key=stale, actor=ACTOR)
        assert not issued.works()
        assert ApiKey.objects.get().name == "renamed"

    def test_it_asks_for_room_when_a_key_becomes_usable_again_and_never_for_one_that_is(self) -> None:
        account = make_account(max_keys=1)
        old = make_key(account=account).key
        ApiKey.objects.update(expires_at=timezone.now() - DAY)
        usable = make_key(account=account).key
        old.refresh_from_db()
        old.expires_at = None
        with pytest.raises(ValidationError, match="maximum of usable keys \\(1\\)"):
            services.api_key_save(key=old, actor=ACTOR)
        usable.name = "renamed"
        services.api_key_save(key=usable, actor=ACTOR)
        assert ApiKey.objects.filter(name="renamed").exists()

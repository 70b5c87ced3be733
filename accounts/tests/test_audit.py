"""The audit log: what an entry holds, and what it never holds."""

from __future__ import annotations

from decimal import Decimal

import pytest
from django.contrib.auth.models import User
from django.db import transaction

from accounts import audit
from accounts.models import Account, AuditEntry, Tier
from accounts.tests.factories import latest, make_key

pytestmark = pytest.mark.django_db

ACTOR = "admin:root"


def test_it_records_a_new_object_with_all_its_fields_and_then_only_what_changed() -> None:
    account = Account(name="acme", contact="a@acme.test", monthly_cost_budget=Decimal("12.5"), requests_per_minute=5)
    audit.audited_save(account, actor=ACTOR)
    entry = latest()
    assert (entry.actor, entry.action, entry.target_type, entry.target) == (ACTOR, "created", "account", "acme")
    assert entry.before == {}
    assert (entry.after["contact"], entry.after["is_active"]) == ("a@acme.test", True)
    account.monthly_cost_budget = Decimal("12.50")
    audit.audited_save(account, actor=ACTOR)
    assert latest() == entry, "nothing changed"
    account.requests_per_minute, account.monthly_cost_budget = 50, Decimal("0.000000001")
    audit.audited_save(account, actor=ACTOR)
    assert (latest().action, latest().before, latest().after) == (
        "changed",
        {"requests_per_minute": 5, "monthly_cost_budget": "12.500000000"},
        {"requests_per_minute": 50, "monthly_cost_budget": "0.000000001"},
    )


def test_it_names_related_objects() -> None:
    issued = make_key()
    issued.key.tier = Tier.objects.create(name="premium")
    audit.audited_save(issued.key, actor=ACTOR)
    assert (latest().before, latest().after) == ({"tier": "free"}, {"tier": "premium"})


def test_it_never_holds_digests_or_passwords() -> None:
    issued = make_key()
    user = User(username="ada", password="pbkdf2_sha256$1$salt$hash")
    audit.audited_save(user, actor=ACTOR)
    text = " ".join(f"{entry.before}{entry.after}" for entry in AuditEntry.objects.all())
    assert not [secret for secret in (issued.key.digest, "pbkdf2", issued.plain) if secret in text]


def test_it_leaves_no_entry_when_the_change_is_rolled_back() -> None:
    with transaction.atomic():
        audit.audited_save(Account(name="acme"), actor=ACTOR)
        transaction.set_rollback(True)
    assert not AuditEntry.objects.exists()


def test_it_makes_no_change_when_the_entry_can_not_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**fields: object) -> None:
        raise RuntimeError("the log is down")

    monkeypatch.setattr(AuditEntry.objects, "create", fail)
    with pytest.raises(RuntimeError):
        audit.audited_save(Account(name="acme"), actor=ACTOR)
    assert not Account.objects.exists()

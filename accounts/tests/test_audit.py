"""The audit log: what an entry holds, and what it never holds."""

from __future__ import annotations

from decimal import Decimal

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.db import transaction

from accounts import audit
from accounts.models import Account, AuditEntry, Tier
from accounts.tests.factories import latest, make_account, make_key

pytestmark = pytest.mark.django_db

ACTOR = "admin:root"


def test_it_records_a_new_object_with_all_its_fields() -> None:
    audit.audited_save(Account(name="acme", contact="a@acme.test"), actor=ACTOR)
    entry = latest()
    assert (entry.actor, entry.action, entry.target_type, entry.target) == (ACTOR, "created", "account", "acme")
    assert entry.before == {}
    assert entry.after["contact"] == "a@acme.test"
    assert entry.after["is_active"] is True


def test_it_records_only_what_changed() -> None:
    account = make_account("acme", requests_per_minute=5)
    account.requests_per_minute = 50
    audit.audited_save(account, actor=ACTOR)
    assert (latest().action, latest().before, latest().after) == (
        "changed",
        {"requests_per_minute": 5},
        {"requests_per_minute": 50},
    )


def test_it_leaves_no_entry_where_nothing_changed() -> None:
    account = make_account(monthly_cost_budget=Decimal("12.5"))
    count = AuditEntry.objects.count()
    account.monthly_cost_budget = Decimal("12.50")
    audit.audited_save(account, actor=ACTOR)
    assert AuditEntry.objects.count() == count


def test_it_keeps_money_exact() -> None:
    account = make_account()
    account.monthly_cost_budget = Decimal("0.000000001")
    audit.audited_save(account, actor=ACTOR)
    assert latest().after == {"monthly_cost_budget": "0.000000001"}


def test_it_names_related_objects() -> None:
    issued = make_key()
    issued.key.tier = Tier.objects.create(name="premium")
    audit.audited_save(issued.key, actor=ACTOR)
    assert (latest().before, latest().after) == ({"tier": "free"}, {"tier": "premium"})


def test_it_records_what_a_deletion_takes_along() -> None:
    user = User.objects.create_user("ada", password=None)
    audit.audited_delete(user, actor=ACTOR)
    assert (latest().action, latest().target, latest().before["username"]) == ("deleted", "ada", "ada")
    assert not User.objects.exists()


def test_it_records_many_to_many_fields() -> None:
    group = Group.objects.create(name="finance")
    before = audit.stored_values(group)
    group.permissions.add(Permission.objects.get(codename="view_requestrecord"))
    audit.audit_change(group, before=before, actor=ACTOR)
    assert latest().before == {"permissions": []}
    assert "Can view request record" in latest().after["permissions"][0]


def test_it_never_holds_digests_or_passwords() -> None:
    issued = make_key()
    user = User(username="ada", password="pbkdf2_sha256$1$salt$hash")
    audit.audited_save(user, actor=ACTOR)
    text = " ".join(f"{entry.before}{entry.after}" for entry in AuditEntry.objects.all())
    assert issued.key.digest not in text
    assert "pbkdf2" not in text
    assert issued.plain not in text


def test_it_leaves_no_entry_when_the_change_is_rolled_back() -> None:
    count = AuditEntry.objects.count()
    with transaction.atomic():
        audit.audited_save(Account(name="acme"), actor=ACTOR)
        transaction.set_rollback(True)
    assert AuditEntry.objects.count() == count


def test_it_makes_no_change_when_the_entry_can_not_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**fields: object) -> None:
        raise RuntimeError("the log is away")

    monkeypatch.setattr(AuditEntry.objects, "create", fail)
    with pytest.raises(RuntimeError):
        audit.audited_save(Account(name="acme"), actor=ACTOR)
    assert not Account.objects.exists()

"""Whose ledgers there are, and of which months."""

from __future__ import annotations

from dataclasses import dataclass

from django.conf import settings

from accounts.limits.contract import Subject
from accounts.limits.local import wall_clock
from accounts.limits.months import month_of, month_start
from accounts.models import Account, ApiKey, ModelBudget
from accounts.snapshots import account_subject, key_ledger, model_subject
from monitoring.retention import rollup_cutoff
from monitoring.rollups.periods import HOUR, moment_of


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose ledger it is: `name` is for people."""

    subject: Subject
    account_id: int
    name: str


def ledger_holders() -> list[Holder]:
    """List all who may have a ledger; keys that replaced one another have one, under the name of the last."""
    found: dict[str, Holder] = {}
    for account in Account.objects.order_by("pk").iterator():
        _add(found, account_subject(account), account.pk, f"account {account.name}")
    for key in ApiKey.objects.select_related("account").order_by("pk").iterator():
        _add(found, key_ledger(key), key.account_id, _key_name(key))
    for budget in ModelBudget.objects.select_related("account", "key__account").order_by("pk").iterator():
        holder = budget.key or budget.account
        name = _key_name(holder) if isinstance(holder, ApiKey) else f"account {holder}"
        account_id = budget.key.account_id if budget.key else budget.account_id or 0
        _add(found, model_subject(budget), account_id, f"{name} for model {budget.model}")
    return list(found.values())


def ledger_months(begin: int, until: int) -> list[int]:
    """List the months (YYYYMM) in a span of hours whose ledgers are in use: this one and, for late calls, the last."""
    pruned = rollup_cutoff(settings.ROLLUP_RETENTION_DAYS)
    oldest = 0 if pruned is None else int(f"{pruned:%Y%m}")
    first, last = (int(f"{moment:%Y%m}") for moment in (moment_of(begin), moment_of(until) - HOUR))
    present = month_of(wall_clock())
    return [month for month in (month_of(month_start(present) - 1), present) if max(first, oldest) <= month <= last]


def _add(found: dict[str, Holder], subject: Subject, account_id: int, name: str) -> None:
    found[subject.name] = Holder(subject, account_id, name)


def _key_name(key: ApiKey) -> str:
    return f"key {key.account.name}/{key.name}"

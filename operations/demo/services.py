"""Makes the sample data, and removes it again without a trace in figures, limits or the catalog.

Everything is made by the parts that make the real data: services with audit entries, the recorder with its rollups, the
conditions of alerts. Entries of the audit log, which nobody can change, list what was made. Nobody knows the secrets of
the keys. The providers are switched off, and their addresses lead nowhere; the local model answers for the chat models
if there is one, under the names that callers use.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import structlog
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import connection, models, transaction
from django.db.models import Max, ProtectedError
from django.utils import timezone
from redis.exceptions import RedisError

from accounts.audit import audit_event, audited_delete
from accounts.key_cache import account_subject, key_cache, key_ledger
from accounts.limits.ledgers import LedgerStore
from accounts.limits.local import wall_clock
from accounts.limits.records import UsageRecord
from accounts.limits.types import SHARDS, Subject
from accounts.models import Account, ApiKey, AuditEntry, Tier
from accounts.services import account_save, account_set_active, api_key_create, tier_save
from core.money import NANO_DOLLARS
from core.times import month_of
from inference.models import Deployment, Model, Provider
from inference.seeds import LOCAL
from inference.services import catalog_delete, catalog_save
from inference.upstream.local_model import MODEL_NAME
from monitoring.ledger import months_settled
from monitoring.models import Alert, RequestContent, RequestRecord
from monitoring.recorder import delete_records, write_records
from monitoring.retention import has_earlier_rollups, oldest_admission
from monitoring.rollups.periods import DAY, ONE_DAY, datetime_of, floor, month_begin
from monitoring.rollups.store import rollups_forget, rollups_lock
from operations.alerts.conditions import PREFIX, Condition, budgets_used, outage_condition
from operations.demo.traffic import (
    ACCOUNTS,
    BUSINESS,
    CALLERS,
    DOWN,
    MODELS,
    NEARLY_SPENT,
    OUTAGE_MINUTES,
    STARTER,
    Caller,
    Outage,
    report,
    requests,
)

log = structlog.get_logger(__name__)

LASTING = timedelta(days=61)
BATCH = 500
#: The outage began so many hours ago, in one of the busiest.
OUTAGE_AGO, BUSIEST = range(2, 22), 14
#: The share of its budget that NEARLY_SPENT has used; the budget is a multiple of STEP dollars.
SPENT, LEAST_BUDGET, STEP = Decimal("0.92"), Decimal(30), Decimal(5)
#: The entries of the audit log that list what was made, by the names in TABLES; the last one says that it was removed.
KIND, MADE, REMOVED = "sample row", "made", "removed"
TIERS: Mapping[str, dict[str, Any]] = {
    BUSINESS: {"requests_per_minute": 600, "tokens_per_minute": 2_000_000, "max_output_tokens": 8_192},
    STARTER: {"requests_per_minute": 20, "max_output_tokens": 1_024},
}
#: Tables of what is made, in the order in which it can be removed.
TABLES: Mapping[str, type[models.Model]] = {
    "key": ApiKey,
    "account": Account,
    "alert": Alert,
    "deployment": Deployment,
    "model": Model,
    "provider": Provider,
    "tier": Tier,
}


class DemoRefused(Exception):
    """The sample data can't be made; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Demo:
    """What was made or removed."""

    accounts: int
    keys: int
    requests: int


@dataclass(slots=True)
class _Made:
    keys: dict[Caller, ApiKey] = field(default_factory=dict)
    #: Ids by the names in TABLES, as far as no entry of the audit log has them yet.
    ids: dict[str, list[int]] = field(default_factory=dict)

    def add(self, row: models.Model) -> None:
        name = next(name for name, table in TABLES.items() if isinstance(row, table))
        self.ids.setdefault(name, []).append(row.pk)

    def note(self, actor: str) -> None:
        audit_event(actor=actor, action=MADE, kind=KIND, details=self.ids)
        self.ids = {}


def _ids_made() -> dict[str, list[int]]:
    """Return the ids of the sample data that is there, by the names in TABLES."""
    found: dict[str, list[int]] = {name: [] for name in TABLES}
    for entry in AuditEntry.objects.filter(target_type=KIND).order_by("-pk"):
        if entry.action == REMOVED:
            break
        for name, ids in entry.after.items():
            found[name] += ids
    return found


def demo_accounts() -> models.QuerySet[Account]:
    """Return the accounts of the sample data. They are inactive until all of it has been made."""
    return Account.objects.filter(pk__in=_ids_made()["account"]).order_by("pk")


def demo_make(*, actor: str, force: bool = False) -> Demo:
    """Make the sample data, about 20,000 requests in half a minute; raise DemoRefused if that can't be done.

    Production needs `force`. Requests that the log would have pruned already are not made.
    """
    if settings.IS_PRODUCTION and not force:
        raise DemoRefused("This is production: its figures should be real. Use --force if you want sample data here.")
    now, random = timezone.now().replace(microsecond=0), Random(11)
    begin = _begin(now)
    hours = (now - timedelta(hours=number) for number in OUTAGE_AGO)
    failed_at = min(hours, key=lambda at: abs(at.hour - BUSIEST))
    outage = Outage(failed_at, failed_at + timedelta(minutes=OUTAGE_MINUTES))
    made = _make_rows(begin, actor)
    records = list(requests(made.keys, begin=begin, end=now, outage=outage, random=random))
    _write(records)
    number = len(records) + _grant_budget(made, now, random, actor=actor)
    with transaction.atomic():
        accounts = list(demo_accounts())
        for key in made.keys.values():
            newest = RequestRecord.objects.filter(key_id=key.pk).aggregate(Max("admitted_at"))
            ApiKey.objects.filter(pk=key.pk).update(created_at=begin, last_used_at=newest["admitted_at__max"])
        for account in accounts:
            account_set_active(account=account, active=True, actor=actor)
        _alert(made, accounts, outage)
        made.note(actor)
        _drop(_ledgers(accounts, list(made.keys.values())))  # a page may have seeded them meanwhile
    return Demo(len(accounts), len(made.keys), number)


def demo_remove(*, actor: str) -> Demo:
    """Remove the sample data with its requests, and alerts about its accounts.

    What is in use by now stays: an account with a key that is no sample data, a provider that was switched on, with its
    deployments and models, a model with another deployment, a tier with other keys. Audit entries stay, and removals
    add theirs. Raises DemoRefused if another process has removed it meanwhile.
    """
    made = _ids_made()
    real = ApiKey.objects.exclude(pk__in=made["key"])
    accounts = list(demo_accounts().exclude(pk__in=real.values("account_id")))
    number = 0
    for account in accounts:
        records = RequestRecord.objects.filter(account_id=account.pk).order_by("admitted_at", "pk")
        while deleted := delete_records(records[:BATCH]):
            number += deleted
    ids = [account.pk for account in accounts]
    keys = list(ApiKey.objects.filter(account__in=ids).order_by("-pk"))  # a key that another made comes before it
    ledgers = _ledgers(accounts, keys)
    with transaction.atomic():
        # A process that still makes them stops at this lock.
        if not demo_accounts().select_for_update() and accounts:
            raise DemoRefused("The sample data was removed by another process.")
        delete_records(RequestRecord.objects.filter(account_id__in=ids))
        rollups_forget(ids)
        RequestContent.objects.filter(account_id__in=ids).delete()
        Alert.objects.filter(pk__in=[alert.pk for alert in _alerts_about(accounts, keys)]).delete()
        for row in (*keys, *accounts):
            audited_delete(row, actor=actor)
        for name, table in TABLES.items():
            if table not in (Account, ApiKey):
                _remove(table._default_manager.filter(pk__in=made[name]), actor)
        audit_event(actor=actor, action=REMOVED, kind=KIND, details={"accounts": len(accounts), "requests": number})
        transaction.on_commit(key_cache.forget)
    _drop(ledgers)
    return Demo(len(accounts), len(keys), number)


def _begin(now: datetime) -> datetime:
    """Return when the requests begin: not among days whose records have been pruned, which would look wrong then."""
    kept = min(LASTING, timedelta(days=settings.LOG_RETENTION_DAYS or LASTING.days) - ONE_DAY)
    begin = datetime_of(floor(now - kept, DAY))
    oldest = oldest_admission() or now
    if has_earlier_rollups(oldest):
        begin = max(begin, datetime_of(floor(oldest, DAY)) + ONE_DAY)
    if now - begin < ONE_DAY:
        raise DemoRefused("The request log was pruned, and has no days that sample data could be added to.")
    return begin


@transaction.atomic
def _make_rows(begin: datetime, actor: str) -> _Made:
    with connection.cursor() as cursor:
        rollups_lock(cursor)  # of two runs at once, the second waits here, and finds the accounts of the first
    if demo_accounts().exists():
        raise DemoRefused("The sample data is there already, or being made. Remove it first: manage.py demo --remove.")
    made = _Made()
    _make_catalog(made, begin, actor)
    tiers: dict[str, Tier] = {}
    for name, limits in TIERS.items():
        tiers[name] = Tier(name=_free(Tier, "name", name), **limits)
        tier_save(tier=tiers[name], actor=actor)
        made.add(tiers[name])
    accounts: dict[str, Account] = {}
    for caller in CALLERS:
        account = accounts.get(caller.account)
        if account is None:
            account = Account(name=_free(Account, "name", caller.account), is_active=False)
            account.display_name = ACCOUNTS[caller.account]
            account_save(account=account, actor=actor)
            accounts[caller.account] = account
            made.add(account)
        tier = tiers[caller.tier]
        made.keys[caller], _ = api_key_create(account=account, tier=tier, name=caller.key, actor=actor)
        made.add(made.keys[caller])
    Account.objects.filter(pk__in=[account.pk for account in accounts.values()]).update(created_at=begin)
    made.note(actor)
    return made


def _make_catalog(made: _Made, begin: datetime, actor: str) -> None:
    """Make providers that are switched off, and models. A model that exists already stays as it is."""
    local = Provider.objects.filter(name=LOCAL, from_environment=True, is_enabled=True).first()
    providers: dict[str, Provider] = {}
    for name in dict.fromkeys(name for model in MODELS.values() for name in model.providers):
        unique = _free(Provider, "name", name)
        providers[name] = Provider(name=unique, base_url=f"https://{unique}.invalid/v1", is_enabled=False)
        catalog_save(row=providers[name], actor=actor)
        made.add(providers[name])
    for each in MODELS.values():
        kind = Model.Kind.EMBEDDING if each.is_embedding else Model.Kind.CHAT
        is_answered = local is not None and not each.is_embedding
        model = Model(public_name=each.name, kind=kind, context_size=each.context, is_enabled=is_answered)
        try:
            catalog_save(row=model, actor=actor)
        except ValidationError:
            continue
        made.add(model)
        served = [(providers[name], each.upstream_name) for name in each.providers]
        served += [(local, MODEL_NAME)] if local is not None and is_answered else []
        for order, (provider, name) in enumerate(served):
            deployment = Deployment(model=model, provider=provider, upstream_name=name, order=order)
            catalog_save(row=deployment, actor=actor)
            made.add(deployment)
            price = each.price()
            price.deployment, price.valid_from = deployment, begin
            catalog_save(row=price, actor=actor)


def _free(table: type[models.Model], column: str, name: str) -> str:
    """Return a name, or with an ending if a real row has it."""
    return f"{name}-demo" if table._default_manager.filter(**{column: name}).exists() else name


def _write(records: Sequence[UsageRecord]) -> None:
    """Write records in the order of time. Raises DemoRefused if the sample data is removed meanwhile."""
    ordered = sorted(records, key=lambda record: record.admitted_at)
    for start in range(0, len(ordered), BATCH):
        with transaction.atomic():
            if not demo_accounts().select_for_update():
                raise DemoRefused("The sample data was removed while it was being made.")
            write_records(ordered[start : start + BATCH])


def _grant_budget(made: _Made, now: datetime, random: Random, *, actor: str) -> int:
    """Grant an account a budget of which it has used SPENT, thanks to more calls in this month; return their number."""
    caller, key = next((caller, key) for caller, key in made.keys.items() if caller.account == NEARLY_SPENT)
    account = Account.objects.get(pk=key.account_id)
    subject, month, begin = account_subject(account), month_of(wall_clock()), month_begin(now)
    spent = Decimal(months_settled([subject], month)[subject].cost) / NANO_DOLLARS
    budget = max(LEAST_BUDGET, math.ceil(spent / SPENT / STEP) * STEP)
    calls: list[UsageRecord] = []
    while spent < budget * SPENT:
        at = begin + random.random() * (now - begin)
        calls.append(report(caller, key, at, budget * SPENT - spent, random))
        spent += Decimal(calls[-1].cost or 0) / NANO_DOLLARS
    _write(calls)
    account.monthly_cost_budget = budget
    account_save(account=account, actor=actor)
    return len(calls)


def _alert(made: _Made, accounts: Sequence[Account], outage: Outage) -> None:
    """Store the alerts of the outage, and that of the budget: nobody is notified of these."""
    down = Deployment.objects.filter(pk__in=_ids_made()["deployment"], provider__name__startswith=DOWN)
    for deployment in down.select_related("model", "provider").order_by("pk"):
        made.add(_store(outage_condition(deployment, "http 502"), outage.noticed, outage.end))
    subjects = tuple(f"{PREFIX}account:{account.pk}:" for account in accounts)
    began = max(month_begin(timezone.now()), timezone.now() - timedelta(hours=2))
    for condition in budgets_used():
        if condition.is_on and condition.subject.startswith(subjects):
            made.add(_store(condition, began))


def _store(condition: Condition, began: datetime, ended: datetime | None = None) -> Alert:
    texts = {"kind": condition.kind, "subject": condition.subject, "title": condition.title, "text": condition.text}
    return Alert.objects.create(began_at=began, ended_at=ended, **texts)


def _alerts_about(accounts: Sequence[Account], keys: Sequence[ApiKey]) -> list[Alert]:
    """Return the alerts that a worker has begun about the budgets of these accounts and keys."""
    subjects = [f"{PREFIX}account:{account.pk}:" for account in accounts]
    subjects += [f"{PREFIX}key:{key.limits_id}:" for key in keys]
    budgets = Alert.objects.filter(kind=Alert.Kind.BUDGET)
    return [alert for alert in budgets if alert.subject.startswith(tuple(subjects))]


def _remove(rows: Iterable[models.Model], actor: str) -> None:
    """Remove rows, apart from those that are in use: switched on, or referred to by real rows."""
    for row in rows:
        with suppress(ProtectedError), transaction.atomic():
            if _is_used(row):
                continue
            if isinstance(row, Alert):
                row.delete()
            elif isinstance(row, Tier):
                audited_delete(row, actor=actor)
            else:
                catalog_delete(row=row, actor=actor)  # type: ignore[arg-type]


def _is_used(row: models.Model) -> bool:
    if isinstance(row, Deployment):
        return row.provider.is_enabled and not row.provider.from_environment
    if isinstance(row, Model):
        return row.deployments.exists()
    return isinstance(row, Provider) and row.is_enabled


def _ledgers(accounts: Sequence[Account], keys: Sequence[ApiKey]) -> list[tuple[int, Subject]]:
    """Return the owners of ledgers, each with its shard."""
    found = [(account.pk % SHARDS, account_subject(account)) for account in accounts]
    return [*found, *((key.account_id % SHARDS, key_ledger(key)) for key in keys)]


def _drop(ledgers: Iterable[tuple[int, Subject]]) -> None:
    """Delete ledgers; those of existing accounts and keys are seeded from the records when they are used next."""
    begin = timezone.now() - LASTING
    months = {int(f"{begin + number * ONE_DAY:%Y%m}") for number in range(LASTING.days + 1)}
    try:
        with closing(LedgerStore(settings.REDIS_URL)) as store:
            for shard, subject in ledgers:
                store.drop(shard, subject, months)
    except RedisError as error:  # without the store there are no ledgers to be wrong, or they expire in time
        log.warning("ledgers_not_dropped", cause=type(error).__name__)

"""Limits that are nearly reached, for the dashboard: monthly budgets, and rates of the busiest keys.

The work is bounded, however many accounts there are. Budgets are read from the month's rollups: all of them, or at most
those of the MOST accounts, keys and models that used most this month. Rates, slots and open calls of the BUSIEST keys
of the last hour and of their accounts are read from the limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import reduce
from operator import or_
from typing import Any, TypeVar

from django.db.models import BigIntegerField, F, Model, Q, Sum
from django.db.models.functions import Coalesce

from accounts.admin.base import change_url
from accounts.key_cache import account_subject, key_subject, model_subject
from accounts.limit_usage import LIVE, recorded_usage, usage_of_scopes
from accounts.limits.types import LimitSet, Subject
from accounts.models import GENERATIONS, Account, ApiKey, ModelBudget
from accounts.selectors import HAS_BUDGET, api_key_makers, api_keys_current, model_budgets_current
from monitoring.models import Rollup
from monitoring.rollups.periods import minute_of, month_begin
from monitoring.rollups.queries import busiest_keys

#: Most accounts, keys and model budgets, of each.
MOST = 500

Row = TypeVar("Row", bound=Model)
#: Rows that have a budget, and whether no other row with a budget was used this month.
Chosen = tuple[Sequence[Row], bool]
#: The first keys of the rotations of a key and of its makers: its use counts against the budgets of all of them.
LINEAGES = {
    f"eldest_{above}": Coalesce(
        f"{'maker__' * above}lineage_id", f"{'maker__' * above}pk", output_field=BigIntegerField()
    )
    for above in range(GENERATIONS + 1)
}


def budgeted_accounts(now: datetime) -> Chosen[Account]:
    """Return accounts with a budget: all, or those that used most this month."""
    accounts = Account.objects.filter(HAS_BUDGET, is_active=True)
    if len(few := list(accounts[: MOST + 1])) <= MOST:
        return few, True
    heaviest = _heaviest(now, Rollup.Grain.ACCOUNT_DAY, "account_id", account_id__in=accounts.values("pk"))
    return list(accounts.filter(pk__in=[account for (account,) in heaviest])), len(heaviest) < MOST


def budgeted_keys(now: datetime) -> Chosen[ApiKey]:
    """Return keys with a budget: all, or those used most this month, including earlier keys and keys they made."""
    keys = api_keys_current(at=now).filter(HAS_BUDGET).annotate(eldest=LINEAGES["eldest_0"])
    if len(few := list(keys[: MOST + 1])) <= MOST:
        return few, True
    lineages = ApiKey.objects.annotate(**LINEAGES)
    counted = reduce(or_, (Q(**{f"{eldest}__in": keys.values("eldest")}) for eldest in LINEAGES))
    members = lineages.filter(counted).values("pk")
    heaviest = _heaviest(now, Rollup.Grain.KEY_DAY, "key_id", key_id__in=members)
    using = lineages.filter(pk__in=[key for (key,) in heaviest]).values_list(*LINEAGES)
    chosen = {eldest for row in using for eldest in row if eldest is not None}
    return list(keys.filter(eldest__in=chosen)), len(heaviest) < MOST


def model_budgets(now: datetime) -> Chosen[ModelBudget]:
    """Return model budgets: all, or those whose accounts used most of the model this month."""
    budgets = model_budgets_current(at=now)
    if len(few := list(budgets[: MOST + 1])) <= MOST:
        return few, True
    owned = budgets.annotate(of=Coalesce("account_id", "key__account_id"))
    within = {"account_id__in": owned.values("of"), "model__in": owned.values("model")}
    heaviest = set(_heaviest(now, Rollup.Grain.ACCOUNT_DAY, "account_id", "model", **within))
    found = owned.filter(of__in={account for account, _ in heaviest}, model__in={model for _, model in heaviest})
    return [each for each in found if (each.of, each.model) in heaviest], len(heaviest) < MOST


def _heaviest(now: datetime, grain: Rollup.Grain, *columns: str, **within: Any) -> list[tuple[Any, ...]]:
    """Return the values of `columns` with the highest usage this month, by cost and then tokens; at most MOST."""
    rows = Rollup.objects.filter(grain=grain, start__gte=minute_of(month_begin(now)), **within).order_by()
    sums = rows.values(*columns).annotate(spent=Sum("cost"), tokens=Sum(F("input_tokens") + F("output_tokens")))
    return list(sums.order_by("-spent", "-tokens", *columns).values_list(*columns)[:MOST])


NEARLY = 0.8
BUSIEST = 50
SHOWN = 10

MANY = f"There are more than {MOST} budgets of a kind: only the {MOST} with the highest usage this month are checked."
UNKNOWN = "The state store is away: budgets are read from the records, and the usage of rates is unknown."


@dataclass(frozen=True, slots=True)
class NearLimit:
    """A limit, its owner, and how much of it is used: `share` (1 is all), and `percent` (up to 100) for a bar."""

    owner: str
    url: str
    limit: str
    used: str
    share: float

    @property
    def percent(self) -> int:
        """Return the share in whole percent, at most 100."""
        return min(100, int(self.share * 100))

    @property
    def is_reached(self) -> bool:
        """Return whether the limit is used up."""
        return self.share >= 1


@dataclass(slots=True)
class NearLimits:
    """The limits with the highest share used, the number of all nearly reached ones, and notes on missing data."""

    limits: list[NearLimit]
    number: int = 0
    notes: list[str] = field(default_factory=list)


def limits_nearly_reached(now: datetime) -> NearLimits:
    """Return the limits of which at least the share NEARLY is used, highest first.

    Budgets are read from the records, usage of the busiest keys from the limits, in one step.
    """
    owners: dict[str, tuple[str, Account | ApiKey]] = {}

    def own(subject: Subject, account: Account, owner: Account | ApiKey) -> Subject:
        owners[subject.name] = f"{account.name}/{owner.name}" if isinstance(owner, ApiKey) else owner.name, owner
        return subject

    accounts, has_all_accounts = budgeted_accounts(now)
    keys, has_all_keys = budgeted_keys(now)
    budgets, has_all_budgets = model_budgets(now)
    budgeted = [
        *(own(account_subject(each), each, each) for each in accounts),
        *(own(key_subject(each, now), each.account, each) for each in keys),
        *(own(model_subject(each), each.key.account, each.key) for each in budgets if each.key),
        *(own(model_subject(each), each.account, each.account) for each in budgets if each.account),
    ]
    busiest = busiest_keys(begin=now - timedelta(hours=1), end=now, limit=BUSIEST)
    busy = list(api_keys_current(at=now).filter(pk__in=busiest))
    makers = api_key_makers(busy)
    scopes = []
    for key in busy:
        of_keys = (own(key_subject(each, now), key.account, each) for each in (key, *makers[key.pk]))
        scopes.append(LimitSet(key.account_id, (*of_keys, own(account_subject(key.account), key.account, key.account))))
    report = usage_of_scopes(scopes)
    # What the limits say replaces what the records say.
    usages = {(usage.subject.name, usage.name): usage for usage in [*recorded_usage(budgeted), *report.limits]}
    near = []
    for usage in usages.values():
        if usage.share >= NEARLY:
            name, owner = owners[usage.subject.name]
            near.append(NearLimit(name, change_url(owner), usage.title, usage.text, usage.share))
    near.sort(key=lambda each: (-each.share, each.owner))
    notes = [] if has_all_accounts and has_all_keys and has_all_budgets else [MANY]
    return NearLimits(near[:SHOWN], len(near), notes if report.source == LIVE else [*notes, UNKNOWN])

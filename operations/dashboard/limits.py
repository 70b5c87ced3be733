"""Limits that are nearly reached, for the dashboard: monthly budgets with their forecasts, rates of the busiest keys.

The work is bounded, however many accounts there are. Budgets are read from the month's rollups: all of them, or at most
those of the MOST accounts, keys and models that used most this month. Rates, slots and open calls of the BUSIEST keys
of the last hour and of their accounts are read from the limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import reduce
from itertools import accumulate
from operator import or_
from typing import Any, TypeVar

from django.db.models import BigIntegerField, F, Model, Q, Sum
from django.db.models.functions import Coalesce

from accounts.admin.base import change_url
from accounts.key_cache import account_subject, key_subject, model_subject
from accounts.limit_usage import LIVE, LimitUsage, recorded_usage, usage_of_scopes
from accounts.limits.types import LIMITS, LimitSet, Subject
from accounts.models import GENERATIONS, Account, ApiKey, ModelBudget
from accounts.selectors import (
    HAS_BUDGET,
    api_key_makers,
    api_keys_current,
    model_budgets_current,
)
from monitoring.forecast import budget_forecasts
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
#: The budgets with the highest share used whose pace is read.
FORECAST = 5

MANY = f"There are more than {MOST} budgets of a kind: only the {MOST} with the highest usage this month are checked."
UNKNOWN = "The state store is down: budgets are read from the records, and the usage of rates is unknown."


@dataclass(frozen=True, slots=True)
class NearLimit:
    """A limit, its owner, and how much of it is used, in whole percent; of a budget, also its forecast and burn-down.

    `burn_down` are the points of a line (SVG, 100 wide and 100 high) from the beginning of the month to now, `ahead`
    those of the forecast to its end. The height 0 is nothing used; `limit_y` is where the limit is.
    """

    owner: str
    url: str
    limit: str
    used: str
    share: float
    forecast: str = ""
    reached_at: datetime | None = None
    burn_down: str = ""
    ahead: str = ""
    limit_y: float = 0.0

    @property
    def percent(self) -> int:
        """Return the share in whole percent."""
        return int(self.share * 100)


@dataclass(slots=True)
class NearLimits:
    """The limits with the highest share used, the number of all nearly reached ones, and notes on missing data."""

    limits: list[NearLimit]
    number: int = 0
    notes: list[str] = field(default_factory=list)


Owner = Account | ApiKey


def limits_nearly_reached(now: datetime) -> NearLimits:
    """Return the limits of which at least the share NEARLY is used, highest first, and budgets that will be reached.

    Budgets are read from the records, usage of the busiest keys from the limits, in one step. Of the FORECAST budgets
    with the highest share, those that will be reached this month at their pace are added.
    """
    owners: dict[str, Owner] = {}

    def own(subject: Subject, owner: Owner) -> Subject:
        owners[subject.name] = owner
        return subject

    accounts, has_all_accounts = budgeted_accounts(now)
    keys, has_all_keys = budgeted_keys(now)
    budgets, has_all_budgets = model_budgets(now)
    budgeted = [
        *(own(account_subject(each), each) for each in accounts),
        *(own(key_subject(each, now), each) for each in keys),
        *(own(model_subject(each), owner) for each in budgets if (owner := each.key or each.account)),
    ]
    busiest = busiest_keys(begin=now - timedelta(hours=1), end=now, limit=BUSIEST)
    busy = list(api_keys_current(at=now).filter(pk__in=busiest))
    makers = api_key_makers(busy)
    scopes = []
    for key in busy:
        of_keys = (own(key_subject(each, now), each) for each in (key, *makers[key.pk]))
        scopes.append(LimitSet(key.account_id, (*of_keys, own(account_subject(key.account), key.account))))
    report = usage_of_scopes(scopes)
    # What the limits say replaces what the records say.
    usages = {(usage.subject.name, usage.name): usage for usage in [*recorded_usage(budgeted), *report.limits]}
    ranked = sorted(usages.values(), key=lambda usage: -usage.share)
    outlooks = [
        _outlook(usage, owners[usage.subject.name], now)
        for usage in [each for each in ranked if LIMITS[each.name].is_budget and each.used][:FORECAST]
    ]
    near = {(each.owner, each.limit): each for each in outlooks if each.share >= NEARLY or each.reached_at}
    for usage in ranked:
        if usage.share >= NEARLY:
            plain = _near(usage, owners[usage.subject.name])
            near.setdefault((plain.owner, plain.limit), plain)
    found = sorted(near.values(), key=lambda each: (-each.share, each.owner))
    notes = [] if has_all_accounts and has_all_keys and has_all_budgets else [MANY]
    return NearLimits(found[:SHOWN], len(found), notes if report.source == LIVE else [*notes, UNKNOWN])


def _near(usage: LimitUsage, owner: Owner) -> NearLimit:
    return NearLimit(owner.title, change_url(owner), usage.title, usage.text, usage.share)


def _outlook(usage: LimitUsage, owner: Owner, now: datetime) -> NearLimit:
    """Return a budget with its forecast, and its use in this month as lines."""
    account_id = owner.account_id if isinstance(owner, ApiKey) else owner.pk
    seen = budget_forecasts([usage], account_id=account_id, now=now)[usage]
    limit, daily = usage.limit or 0, seen.daily
    begin, highest = month_begin(now), max(limit, seen.expected) or 1

    def place(at: datetime, amount: float) -> str:
        return f"{(at - begin) / (seen.ends - begin) * 100:.1f},{100 - amount / highest * 100:.1f}"

    days = sorted(day for day in daily if day >= begin)
    sums = accumulate((daily[day] for day in days[:-1]), initial=0)
    here = place(now, usage.settled or 0)
    return replace(
        _near(usage, owner),
        forecast=seen.text,
        reached_at=seen.reached_at,
        burn_down=" ".join([*(place(day, spent) for day, spent in zip(days, sums, strict=False)), here]),
        ahead=f"{here} {place(seen.ends, seen.expected)}",
        limit_y=round(100 - limit / highest * 100, 1),
    )

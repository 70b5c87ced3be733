"""Whose budgets the dashboard looks at: all, or where there are many, those that used most of the month so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from operator import or_
from typing import Any, Generic, TypeVar

from django.db.models import BigIntegerField, F, Model, Q, QuerySet, Sum
from django.db.models.functions import Coalesce

from accounts.models import GENERATIONS, Account, ApiKey, ModelBudget
from accounts.selectors import HAS_BUDGET, api_keys_current, model_budgets_current
from monitoring.models import Rollup
from monitoring.rollups.periods import hour_of, month_begin

#: Accounts, keys and budgets for a model that are looked at, of each.
MOST = 500

Row = TypeVar("Row", bound=Model)
#: The first of the keys that replaced one another: its limits are those of all.
LINEAGE = Coalesce("lineage_id", "pk", output_field=BigIntegerField())
#: The same of a key and of those that made it, whose budgets its use counts against as well.
LINEAGES = {
    f"eldest_{above}": Coalesce(
        f"{'maker__' * above}lineage_id", f"{'maker__' * above}pk", output_field=BigIntegerField()
    )
    for above in range(GENERATIONS + 1)
}


@dataclass(frozen=True, slots=True)
class Chosen(Generic[Row]):
    """Rows that have a budget. `is_all`: no other has used anything this month."""

    rows: Sequence[Row]
    is_all: bool


def budgeted_accounts(now: datetime) -> Chosen[Account]:
    """Choose accounts."""
    accounts = Account.objects.filter(HAS_BUDGET, is_active=True)
    if (few := _if_few(accounts)) is not None:
        return few
    heaviest = _heaviest(now, Rollup.Grain.ACCOUNT_MONTH, "account_id", account_id__in=accounts.values("pk"))
    return Chosen(list(accounts.filter(pk__in=[account for (account,) in heaviest])), len(heaviest) < MOST)


def budgeted_keys(now: datetime) -> Chosen[ApiKey]:
    """Choose keys, by what those used as well that they replaced or made."""
    keys = api_keys_current(at=now).filter(HAS_BUDGET).annotate(eldest=LINEAGE)
    if (few := _if_few(keys)) is not None:
        return few
    lineages = ApiKey.objects.annotate(**LINEAGES)
    counted = reduce(or_, (Q(**{f"{eldest}__in": keys.values("eldest")}) for eldest in LINEAGES))
    members = lineages.filter(counted).values("pk")
    heaviest = _heaviest(now, Rollup.Grain.KEY_MONTH, "key_id", key_id__in=members)
    using = lineages.filter(pk__in=[key for (key,) in heaviest]).values_list(*LINEAGES)
    chosen = {eldest for row in using for eldest in row if eldest is not None}
    return Chosen(list(keys.filter(eldest__in=chosen)), len(heaviest) < MOST)


def model_budgets(now: datetime) -> Chosen[ModelBudget]:
    """Choose budgets for a model, by what their accounts used of it."""
    budgets = model_budgets_current(at=now)
    if (few := _if_few(budgets)) is not None:
        return few
    owned = budgets.annotate(of=Coalesce("account_id", "key__account_id"))
    within = {"account_id__in": owned.values("of"), "model__in": owned.values("model")}
    heaviest = set(_heaviest(now, Rollup.Grain.ACCOUNT_MONTH, "account_id", "model", **within))
    found = owned.filter(of__in={account for account, _ in heaviest}, model__in={model for _, model in heaviest})
    chosen = [each for each in found if (each.of, each.model) in heaviest]
    return Chosen(chosen, len(heaviest) < MOST)


def _if_few(rows: QuerySet[Any, Any]) -> Chosen[Any] | None:
    found = list(rows[: MOST + 1])
    return Chosen(found, True) if len(found) <= MOST else None


def _heaviest(now: datetime, grain: Rollup.Grain, *columns: str, **within: Any) -> Sequence[tuple[Any, ...]]:
    """List who used most this month, MOST at most: by money first, then by tokens."""
    rows = Rollup.objects.filter(grain=grain, start=hour_of(month_begin(now)), **within).order_by()
    sums = rows.values(*columns).annotate(spent=Sum("cost"), tokens=Sum(F("input_tokens") + F("output_tokens")))
    return list(sums.order_by("-spent", "-tokens", *columns).values_list(*columns)[:MOST])

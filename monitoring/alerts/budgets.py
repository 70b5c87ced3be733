"""Who has used how much of his month: budgets of accounts, of keys, and of either for one model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.db.models import Q, Sum
from django.utils import timezone

from accounts.limits.bounds import Amount
from accounts.models import Account, ApiKey, Budgets, ModelBudget
from accounts.refusals import NANO_DOLLARS
from accounts.selectors import HAS_BUDGET
from accounts.snapshots import nano_dollars
from monitoring.alerts.conditions import Condition
from monitoring.models import Alert, Rollup
from monitoring.rollups.periods import Period, end_of, hour_of, moment_of, start_of

LEVELS = (50, 80, 100)  # percent
PREFIX = "budget:"  # of an alert's subject
SLACK = 5  # percent below a level at which its episode ends, as after the budget was raised

#: What was used, by owner and model; under None: of all models.
Used = dict[tuple[int, str | None], Amount]


@dataclass(frozen=True, slots=True)
class Month:
    """A calendar month (UTC) as the rollups count it."""

    start: int
    end: int

    @property
    def name(self) -> str:
        """The month as YYYYMM."""
        return f"{moment_of(self.start):%Y%m}"

    @classmethod
    def of(cls, moment: datetime) -> Month:
        """Find the month of a moment."""
        start = start_of(Period.MONTH, hour_of(moment.astimezone(UTC)))
        return cls(start, end_of(Period.MONTH, start))


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose budget it is: `name` for people, `slug` for the alert's subject."""

    name: str
    slug: str
    contact: str


def budgets_used() -> Iterator[Condition]:
    """List the levels that budgets have reached this month."""
    month = Month.of(timezone.now())
    by_account, by_key = _used(Rollup.Grain.ACCOUNT_MONTH, month), _used(Rollup.Grain.KEY_MONTH, month)
    for account in Account.objects.filter(HAS_BUDGET, is_active=True):
        yield from _levels(account, _owner(account), by_account.get((account.pk, None)), month)
    for key in _keys().filter(HAS_BUDGET):
        yield from _levels(key, _owner(key), by_key.get((key.limits_id, None)), month)
    for budget in ModelBudget.objects.select_related("account", "key__account"):
        holder = budget.key or budget.account
        if isinstance(holder, ApiKey):
            used = by_key.get((holder.limits_id, budget.model))
        else:
            used = by_account.get((budget.account_id or 0, budget.model))
        if holder is not None:
            yield from _levels(budget, _owner(holder, budget.model), used, month)


def _keys() -> Any:
    now = timezone.now()
    usable = ApiKey.objects.select_related("account").filter(account__is_active=True)
    return usable.filter(Q(revoked_at=None) | Q(revoked_at__gt=now)).filter(successor=None)


def _owner(holder: ApiKey | Account, model: str = "") -> Owner:
    of_model = f" for model {model}" if model else ""
    if isinstance(holder, ApiKey):
        name = f"Key {holder.account.name}/{holder.name}{of_model}"
        return Owner(name, f"key:{holder.limits_id}:{model}", holder.account.contact)
    return Owner(f"Account {holder.name}{of_model}", f"account:{holder.pk}:{model}", holder.contact)


def _used(grain: str, month: Month) -> Used:
    """Sum the month's rollups; keys that replaced one another count together, under the id of the first."""
    column = "key_id" if grain == Rollup.Grain.KEY_MONTH else "account_id"
    rows = (
        Rollup.objects.filter(grain=grain, start=month.start)
        .order_by()
        .values_list(column, "model")
        .annotate(tokens=Sum("input_tokens") + Sum("output_tokens"), money=Sum("cost"))
    )
    firsts = dict(ApiKey.objects.exclude(lineage_id=None).values_list("pk", "lineage_id"))
    used: Used = defaultdict(Amount)
    for owner, model, tokens, money in rows:
        first = firsts.get(owner, owner) if column == "key_id" else owner
        for name in (None, model):
            used[first, name] += Amount(tokens, money)
    return used


def _levels(budget: Budgets, owner: Owner, used: Amount | None, month: Month) -> Iterator[Condition]:
    spent = used or Amount()
    tokens, money = budget.monthly_token_budget, nano_dollars(budget.monthly_cost_budget)
    if tokens:
        told = f"{spent.tokens:,} of {tokens:,} tokens"
        yield from _reached(owner, "tokens", spent.tokens, tokens, told, month)
    if money:
        told = f"${spent.cost / NANO_DOLLARS:,.2f} of ${money / NANO_DOLLARS:,.2f}"
        yield from _reached(owner, "cost", spent.cost, money, told, month)


def topic_of(subject: str) -> str:
    """Name what an alert is about, of any kind: the levels of a budget are about that budget."""
    return subject.rsplit(":", 2)[0] if subject.startswith(PREFIX) else subject


def level_of(subject: str) -> int:
    """Return the level of a budget's alert; 0 of any other."""
    return int(subject.rsplit(":", 2)[1]) if subject.startswith(PREFIX) else 0


def _reached(owner: Owner, what: str, used: int, limit: int, told: str, month: Month) -> Iterator[Condition]:
    """List the levels that are reached, the lower ones quietly, and those only just left."""
    highest = max((level for level in LEVELS if used * 100 >= limit * level), default=0)
    percent = used * 100 // limit
    for level in LEVELS:
        if used * 100 < limit * (level - SLACK):
            continue
        yield Condition(
            Alert.Kind.BUDGET,
            f"{PREFIX}{owner.slug}:{what}:{level}:{month.name}",
            f"{owner.name} has used {percent} % of its {what} budget",
            f"{owner.name} has used {told} of this month's budget ({percent} %). "
            f"{'Further calls are refused. ' if percent >= 100 else ''}"
            f"The budget is whole again on {moment_of(month.end):%Y-%m-%d} 00:00 UTC.",
            is_on=level <= highest,
            contact=owner.contact,
            is_quiet=level < highest,
        )

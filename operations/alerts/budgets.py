"""Budgets that are nearly or fully used this month: of accounts, of keys, and of either for one model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from django.utils import timezone

from accounts.key_cache import account_subject, key_ledger, model_subject
from accounts.limits.local import wall_clock
from accounts.limits.types import SECOND, Amount, Subject
from accounts.models import Account, ApiKey, Budgets
from accounts.selectors import HAS_BUDGET, api_keys_current, model_budgets_current
from core.money import NANO_DOLLARS, nano_dollars
from core.times import month_end, month_of
from monitoring.ledger import months_settled
from monitoring.models import Alert
from operations.alerts.conditions import Condition

LEVELS = (50, 80, 100)  # percent
PREFIX = "budget:"  # of an alert's subject
#: The consequence of a used-up budget, by what it counts.
REFUSED = {
    "tokens": "Further calls are refused. ",
    "cost": "Further calls are refused, apart from those of models that are free. ",
}
SLACK = 5  # percentage points below a level at which its incident ends, as when the budget was raised


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of a budget: `name` for display, `slug` for the alert's subject."""

    name: str
    slug: str
    contact: str


@dataclass(frozen=True, slots=True)
class Budgeted:
    """A budget, its owner, and the subject of its ledger."""

    budget: Budgets
    owner: Owner
    subject: Subject


def budgets_used() -> Iterator[Condition]:
    """Yield the levels that budgets have reached this month."""
    month = month_of(wall_clock())
    found = list(_budgets())
    settled = months_settled([each.subject for each in found], month)
    for each in found:
        yield from _levels(each.budget, each.owner, settled[each.subject], month)


def _budgets() -> Iterator[Budgeted]:
    now = timezone.now()
    for account in Account.objects.filter(HAS_BUDGET, is_active=True):
        yield Budgeted(account, _owner(account), account_subject(account))
    for key in api_keys_current(at=now).filter(HAS_BUDGET):
        yield Budgeted(key, _owner(key), key_ledger(key))
    for budget in model_budgets_current(at=now):
        holder = budget.key or budget.account
        if holder is not None:
            yield Budgeted(budget, _owner(holder, budget.model), model_subject(budget))


def _owner(holder: ApiKey | Account, model: str = "") -> Owner:
    of_model = f" for model {model}" if model else ""
    if isinstance(holder, ApiKey):
        name = f"Key {holder.account.name}/{holder.name}{of_model}"
        return Owner(name, f"key:{holder.limits_id}:{model}", holder.account.contact)
    return Owner(f"Account {holder.name}{of_model}", f"account:{holder.pk}:{model}", holder.contact)


def _levels(budget: Budgets, owner: Owner, spent: Amount, month: int) -> Iterator[Condition]:
    tokens, money = budget.monthly_token_budget, nano_dollars(budget.monthly_cost_budget)
    if tokens:
        told = f"{spent.tokens:,} of {tokens:,} tokens"
        yield from _reached(owner, "tokens", spent.tokens, tokens, told, month)
    if money:
        told = f"${spent.cost / NANO_DOLLARS:,.2f} of ${money / NANO_DOLLARS:,.2f}"
        yield from _reached(owner, "cost", spent.cost, money, told, month)


def topic_of(subject: str) -> str:
    """Return what an alert is about: its subject; for a budget, without the level."""
    return subject.rsplit(":", 2)[0] if subject.startswith(PREFIX) else subject


def level_of(subject: str) -> int:
    """Return the level of a budget's alert; 0 for other alerts."""
    return int(subject.rsplit(":", 2)[1]) if subject.startswith(PREFIX) else 0


def _reached(owner: Owner, what: str, used: int, limit: int, told: str, month: int) -> Iterator[Condition]:
    """Yield the highest level reached, and as not on those below it or within SLACK: their incidents stay open."""
    highest = max((level for level in LEVELS if used * 100 >= limit * level), default=0)
    percent = used * 100 // limit
    for level in LEVELS:
        if used * 100 < limit * (level - SLACK):
            continue
        yield Condition(
            Alert.Kind.BUDGET,
            f"{PREFIX}{owner.slug}:{what}:{level}:{month}",
            f"{owner.name} has used {percent} % of its {what} budget",
            f"{owner.name} has used {told} of this month's budget ({percent} %). "
            f"{REFUSED[what] if percent >= 100 else ''}"
            f"The budget is whole again on {_end_of(month):%Y-%m-%d} 00:00 UTC.",
            is_on=level == highest,
            contact=owner.contact,
        )


def _end_of(month: int) -> datetime:
    return datetime.fromtimestamp(month_end(month) // SECOND, tz=UTC)

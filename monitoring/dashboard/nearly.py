"""Limits that are nearly reached: budgets of the month, and rates of those who ask most just now.

Bounded, however many accounts there are: budgets of those that monitoring.dashboard.budgeted names, by the month's
rollups; rates, slots and open calls of the BUSIEST keys of the last hours and their accounts, by the limits themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from accounts.admin.base import change_url
from accounts.admin.usage_bars import TITLES, Bar, bars, recorded_bars
from accounts.limits import get_limits
from accounts.limits.contract import LimitName, Scope, Subject, Unavailable
from accounts.models import Account, ApiKey, ModelBudget
from accounts.selectors import api_key_makers, api_keys_current
from accounts.snapshots import account_subject, key_subject, model_subject
from monitoring.dashboard.budgeted import MOST, budgeted_accounts, budgeted_keys, model_budgets
from monitoring.rollups.rankings import busiest_keys

NEARLY = 0.8
BUSIEST = 50
SHOWN = 10

MANY = f"There are more than {MOST} budgets of a kind: of those, the {MOST} that used most this month are looked at."
UNKNOWN = "Redis is away: budgets are told by the records, and how far rates are used is unknown."


@dataclass(frozen=True, slots=True)
class Nearly:
    """A limit, whose it is, and how much of it is used: `share` of 1, `percent` for a bar, which ends at 100."""

    owner: str
    url: str
    limit: str
    used: str
    share: float

    @property
    def percent(self) -> int:
        """Return whole percent, 100 at most."""
        return min(100, int(self.share * 100))

    @property
    def is_reached(self) -> bool:
        """Say whether nothing is left."""
        return self.share >= 1


@dataclass(slots=True)
class NearlyReached:
    """The limits of which most is used, and how many there are of the kind; `notes` say what is not known."""

    limits: list[Nearly]
    number: int = 0
    notes: list[str] = field(default_factory=list)


class _Found:
    """Collects bars by subject and limit; what the limits tell replaces what the records tell."""

    def __init__(self) -> None:
        self.owners: dict[str, tuple[str, Account | ApiKey]] = {}
        self._bars: dict[tuple[str, LimitName], tuple[Subject, Bar]] = {}

    def own(self, subject: Subject, name: str, owner: Account | ApiKey) -> Subject:
        self.owners[subject.name] = name, owner
        return subject

    def add(self, subject: Subject, its_bars: Iterable[Bar]) -> None:
        for bar in its_bars:
            self._bars[subject.name, bar.name] = subject, bar

    def nearly(self) -> list[Nearly]:
        near = (self._nearly(subject, bar) for subject, bar in self._bars.values() if _share(bar) >= NEARLY)
        return sorted(near, key=lambda each: (-each.share, each.owner))

    def _nearly(self, subject: Subject, bar: Bar) -> Nearly:
        name, owner = self.owners[subject.name]
        title = TITLES[bar.name] + (f", {subject.model}" if subject.model else "")
        return Nearly(name, change_url(owner), title, bar.text, _share(bar))


def limits_nearly_reached(now: datetime) -> NearlyReached:
    """List them, those first of which most is used."""
    found = _Found()
    notes = [] if _add_budgets(found, now) else [MANY]
    try:
        _add_rates(found, now)
    except Unavailable:
        notes.append(UNKNOWN)
    near = found.nearly()
    return NearlyReached(near[:SHOWN], len(near), notes)


def _share(bar: Bar) -> float:
    if bar.limit is None or bar.used is None:
        return 0.0
    return bar.used / bar.limit if bar.limit else 1.0


def _add_budgets(found: _Found, now: datetime) -> bool:
    """Add what the records tell; answer whether that is of all budgets."""
    accounts, keys, budgets = budgeted_accounts(now), budgeted_keys(now), model_budgets(now)
    subjects = [
        *(found.own(account_subject(each), each.name, each) for each in accounts.rows),
        *(found.own(key_subject(each, now), _key_name(each), each) for each in keys.rows),
        *(found.own(model_subject(each), *_budget_owner(each)) for each in budgets.rows),
    ]
    for subject, its_bars in recorded_bars(subjects):
        found.add(subject, its_bars)
    return accounts.is_all and keys.is_all and budgets.is_all


def _add_rates(found: _Found, now: datetime) -> None:
    """Ask the limits in one step. Raises Unavailable."""
    busiest = busiest_keys(begin=now - timedelta(hours=1), end=now, limit=BUSIEST)
    scopes = []
    keys = list(api_keys_current(at=now).filter(pk__in=busiest))
    makers = api_key_makers(keys)
    for key in keys:
        counted = [(each, f"{key.account.name}/{each.name}") for each in (key, *makers[key.pk])]
        subjects = (
            *(found.own(key_subject(each, now), name, each) for each, name in counted),
            found.own(account_subject(key.account), key.account.name, key.account),
        )
        scopes.append(Scope(key.account_id, subjects))
    for usages in get_limits().usages(scopes) if scopes else []:
        for usage in usages:
            found.add(usage.subject, bars(usage))


def _key_name(key: ApiKey) -> str:
    return f"{key.account.name}/{key.name}"


def _budget_owner(budget: ModelBudget) -> tuple[str, Account | ApiKey]:
    if budget.key is not None:
        return _key_name(budget.key), budget.key
    assert budget.account is not None  # noqa: S101  # a constraint of the table
    return budget.account.name, budget.account

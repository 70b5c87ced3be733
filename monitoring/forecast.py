"""Forecasts of monthly budgets at the pace of the last days: the same on all pages and in GET /usage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from django.contrib.humanize.templatetags.humanize import ordinal
from django.db.models import F, Min, Q, Sum

from accounts.limit_usage import LimitUsage, epoch_seconds
from accounts.limits.types import LIMITS
from accounts.selectors import api_keys_counted_against
from core.formats import about_count, about_money, count, day_text, money
from core.times import SECOND, month_end, month_of
from monitoring.models import Rollup
from monitoring.rollups.periods import DAY, ONE_DAY, datetime_of, floor, month_begin
from monitoring.rollups.queries import Scope

#: The pace is the mean of so many days, today included, or since the first use in them.
PACE_DAYS = 7

#: Amounts used by day (its start in UTC).
Daily = Mapping[datetime, int]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a monthly budget will have used when its month `ends`, and when it is reached; open calls do not count.

    `reached_at` is None without a limit, if the budget lasts to the end of the month, or if it is reached already.
    """

    usage: LimitUsage
    expected: int
    ends: datetime
    reached_at: datetime | None
    daily: Daily

    @property
    def last_day(self) -> str:
        """Return the last day of the month: 31 December."""
        return day_text(self.ends - ONE_DAY)

    @property
    def text(self) -> str:
        """Return a sentence: At this pace about $41 of $60 by 31 December; reached on the 27th."""
        limit, model = self.usage.limit, self.usage.subject.model
        if limit is not None and self.usage.settled >= limit:
            of_model, but = f" to {model}" if model else "", ", except to free models" if self.usage.is_money else ""
            return f"Calls{of_model} are refused until {day_text(self.ends)}{'' if model else but}."
        about, write = (about_money, money) if self.usage.is_money else (about_count, count)
        of = "" if limit is None else f" of {write(limit).removesuffix('.00')}"
        reached = f"; reached on the {ordinal(self.reached_at.day)}" if self.reached_at else ""
        return f"At this pace about {about(self.expected)}{of} by {self.last_day}{reached}."

    def as_json(self) -> dict[str, object]:
        """Return `{expected, reached, text}` for callers; `reached` is in epoch seconds."""
        reached = None if self.reached_at is None else epoch_seconds(int(self.reached_at.timestamp() * SECOND))
        return {"expected": self.usage.amount(self.expected), "reached": reached, "text": self.text}


def budget_forecasts(usages: Iterable[LimitUsage], *, account_id: int, now: datetime) -> dict[LimitUsage, Forecast]:
    """Return the forecasts of the monthly budgets among the limits of an account and its keys; of unused ones, none.

    The use of a key includes that of the keys that it replaced and of those that it made: it counts against its budget.
    """
    budgets = [usage for usage in usages if LIMITS[usage.name].is_budget and usage.used is not None]
    owners = {(usage.subject.is_of_key, usage.subject.owner_id) for usage in budgets}
    used = {owner: _used_by_day(*owner, account_id, now) for owner in owners}
    found = {}
    for usage in budgets:
        daily = Counter[datetime]()
        for model, day, cost, tokens in used[usage.subject.is_of_key, usage.subject.owner_id]:
            if usage.subject.model in (None, model):
                daily[day] += cost if usage.is_money else tokens
        if daily or usage.used:
            found[usage] = forecast_of(usage, daily, now)
    return found


def _used_by_day(is_key: bool, owner_id: int, account_id: int, now: datetime) -> list[tuple[str, datetime, int, int]]:
    """Return model, day, cost and tokens of what counts against budgets, of this month and of the last days."""
    since = floor(min(month_begin(now), pace_begin(now)), DAY)
    rows = Rollup.objects.filter(account_id=account_id, start__gte=since).order_by()
    if is_key:
        rows = rows.filter(grain=Rollup.Grain.KEY_DAY, key_id__in=list(api_keys_counted_against([owner_id])))
    else:
        rows = rows.filter(grain=Rollup.Grain.ACCOUNT_DAY)
    summed = rows.values_list("model", "start").annotate(
        Sum("cost"), tokens=Sum(F("input_tokens") + F("output_tokens"))
    )
    return [(model, datetime_of(start), int(cost), int(tokens)) for model, start, cost, tokens in summed]


def forecast_of(usage: LimitUsage, daily: Daily, now: datetime) -> Forecast:
    """Return the forecast of a monthly budget from its use by day."""
    ends = datetime.fromtimestamp(month_end(month_of(int(now.timestamp()) * SECOND)) // SECOND, tz=UTC)
    recent = {day: amount for day, amount in daily.items() if amount and day >= pace_begin(now)}
    a_day = daily_pace(sum(recent.values()), min(recent, default=now), now)
    limit, expected = usage.limit, usage.settled + round(a_day * ((ends - now) / ONE_DAY))
    reaches = limit is not None and usage.settled < limit < expected
    reached_at = budget_reached_at(usage.settled, limit or 0, a_day, now) if reaches else None
    return Forecast(usage, expected, ends, reached_at, daily)


def budget_reached_at(used: int, limit: int, a_day: float, now: datetime) -> datetime:
    """Return when a budget is reached at a pace."""
    return now + ONE_DAY * ((limit - used) / a_day)


def cost_paces(now: datetime, accounts: Sequence[int]) -> dict[tuple[int, str], float]:
    """Return the cost a day (nano-dollars) by account (id) and model; those of the models add up to the account's."""
    recent = Rollup.objects.filter(recent_costs(now), account_id__in=accounts).order_by()
    rows = recent.values_list("account_id", "model")
    costs = rows.annotate(first=Min("start"), spent=Sum("cost")).order_by("first")
    first: dict[int, int] = {}
    return {
        (account, model): daily_pace(int(cost), datetime_of(first.setdefault(account, day)), now)
        for account, model, day, cost in costs
    }


def cost_pace(now: datetime, scope: Scope) -> float:
    """Return the cost a day (nano-dollars) of all accounts, or of one: the sum of theirs."""
    rows = Rollup.objects.filter(recent_costs(now), **scope.columns).order_by().values("account_id")
    by_account = rows.annotate(first=Min("start"), spent=Sum("cost"))
    days = range(floor(pace_begin(now), DAY), floor(now, DAY) + 1, DAY)
    spent = by_account.aggregate(**{f"from_{day}": Sum("spent", filter=Q(first=day), default=0) for day in days})
    return sum(daily_pace(int(spent[f"from_{day}"]), datetime_of(day), now) for day in days)


def recent_costs(now: datetime) -> Q:
    """Return the condition for the rollups of the accounts' costs that give the pace."""
    days = {"start__gte": floor(pace_begin(now), DAY), "start__lte": floor(now, DAY)}
    return Q(grain=Rollup.Grain.ACCOUNT_DAY, cost__gt=0, **days)


def pace_begin(now: datetime) -> datetime:
    """Return the beginning of the days (UTC) whose use gives the pace."""
    return datetime_of(floor(now, DAY)) - (PACE_DAYS - 1) * ONE_DAY


def daily_pace(amount: float, first: datetime, now: datetime) -> float:
    """Return the mean a day of an amount used since the day `first`: over one whole day at least."""
    return amount / (max(now - first, ONE_DAY) / ONE_DAY)

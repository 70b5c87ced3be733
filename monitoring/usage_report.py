"""The usage report: usage of a period by account and model, beside the period before, with a forecast while it runs.

It is read from the rollups, so its cost does not grow with the log. On request it is compared with the log.
Money is in nano-dollars. Times are UTC, and `end` is excluded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from django.db.models import Q
from django.utils import timezone

from accounts.models import Account
from core.database import release_connections, repeatable_read
from core.formats import NOTHING, money, percent
from core.money import NANO_DOLLARS, dollars, nano_dollars
from monitoring.export import records_within
from monitoring.forecast import budget_reached_at, cost_pace, cost_paces, recent_costs
from monitoring.models import Rollup
from monitoring.rollups.figures import Figures
from monitoring.rollups.log import log_totals
from monitoring.rollups.periods import DAY, EPOCH, ONE_DAY, QUARTER, ceiling, datetime_of, floor, month_begin
from monitoring.rollups.queries import (
    SUMMED,
    Part,
    Scope,
    TooOld,
    account_parts,
    accounts_by_cost,
    caller_names,
    usage_by_account_and_model,
    usage_series,
    within,
)
from monitoring.rollups.verify import has_usage_between, span_of_log

#: Accounts that the page lists, of which the others are added up; and those of one batch of the CSV, which has all.
LISTED, BATCH = 100, 500
#: Months of a period, and how many such periods ago it began, by name.
PERIODS = {"this-month": (1, 0), "last-month": (1, 1), "this-quarter": (3, 0), "last-quarter": (3, 1)}
CUSTOM = "custom"
#: The change, as a share of the cost before, from which a factor is easier to read.
TENFOLD = 9
#: Requests up to which the report is compared with the log at once, and at most.
CHECKED_AT_ONCE, CHECKED_AT_MOST = 50_000, 2_000_000


@dataclass(frozen=True, slots=True)
class Period:
    """A period; `before` is where the one it is compared with begins. `until` is its end, or now while it runs.

    `is_cut`: of the time before, only whole days are known, so it is shorter.
    """

    name: str
    begin: datetime
    end: datetime
    before: datetime
    until: datetime
    is_cut: bool = False

    @classmethod
    def named(cls, name: str, now: datetime) -> Period:
        """Return one of PERIODS."""
        months, ago = PERIODS[name]
        first = month_begin(now)
        begin = _months_after(first, -((first.month - 1) % months) - months * ago)
        end = _months_after(begin, months)
        return cls(name, begin, end, _months_after(begin, -months), min(end, now))

    @classmethod
    def custom(cls, begin: datetime, end: datetime, now: datetime) -> Period:
        """Return a span of whole days, which is compared with as many days before it."""
        return cls(CUSTOM, begin, end, begin - (end - begin), max(begin, min(end, now)))

    @property
    def text(self) -> str:
        """Return the days: `1 to 30 November 2026`."""
        begin, last = self.begin, self.last_day
        shape = "%-d %B %Y" if begin.year < last.year else "%-d %B" if begin.month < last.month else "%-d"
        return f"{begin:{shape}} to {last:%-d %B %Y}" if begin < last else f"{last:%-d %B %Y}"

    @property
    def last_day(self) -> datetime:
        """Return the beginning of the last day."""
        return self.end - ONE_DAY

    @property
    def is_running(self) -> bool:
        """Return whether the period is not over."""
        return self.until < self.end

    @property
    def has_budgets(self) -> bool:
        """Return whether it is this month, for which budgets hold."""
        return self.name == "this-month"

    @property
    def whole_before(self) -> str:
        """Return the name of the whole period before: `October 2026`, `Q3 2026`."""
        if self.name == CUSTOM:
            return "Period before"
        is_quarter = PERIODS[self.name][0] > 1
        return f"Q{(self.before.month + 2) // 3} {self.before.year}" if is_quarter else f"{self.before:%B %Y}"

    @property
    def before_text(self) -> str:
        """Return the name of the time that it is compared with: `October 2026`, `Same period in October 2026`."""
        if not self.is_running:
            return self.whole_before
        return "Same period before" if self.name == CUSTOM else f"Same period in {self.whole_before}"

    @property
    def until_before(self) -> datetime:
        """Return the end of the time that it is compared with: as long as the part of the period that is over."""
        end = min(self.before + (self.until - self.begin), self.begin) if self.is_running else self.begin
        return datetime_of(floor(end, DAY)) if self.is_cut else end

    @property
    def unequal_note(self) -> str:
        """Return why a change would compare times of different lengths; "" if it does not, as of whole months."""
        if self.is_cut:
            return "Part of the time before is kept by whole days only: it is shorter."
        is_shorter = self.until_before - self.before < self.until - self.begin
        return "The time before has fewer days." if self.is_running and is_shorter else ""


def _months_after(first: datetime, months: int) -> datetime:
    """Return the beginning of the month so many months after (or before) that of `first`."""
    number = first.year * 12 + first.month - 1 + months
    return datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Line:
    """The figures of an account, a model or all, those of the time before, and the cost of a day at the present `pace`.

    `budget` is an account's for this month; None for none, and for any other line or period. Calls above it are
    refused: the pace is without what is `refused`, and `reached` says when that begins.
    """

    period: Period
    name: str = ""
    account_id: int = 0
    display_name: str = ""
    now: Figures = field(default_factory=Figures)
    then: Figures = field(default_factory=Figures)
    pace: float = 0.0
    models: list[Line] = field(default_factory=list)
    budget: int | None = None
    refused: float = 0.0
    reached: str = ""

    @property
    def shown_change(self) -> str:
        """Format the change: `+12.5 %`, a factor from tenfold on, or `new` if nothing was used before.

        From less than a dollar it is an amount: `+$27.96`.
        """
        if self.now.requests and not self.then.requests and not self.period.is_running:
            return "new"
        by = self.now.cost - self.then.cost
        if self.period.unequal_note or self.now.unpriced or self.then.unpriced or not (self.then.cost or by):
            return NOTHING
        if self.change is None or self.then.cost < NANO_DOLLARS:
            return f"{'+' if by > 0 else ''}{money(by)}"
        return _change_text(self.change)

    @property
    def shown_budget(self) -> str:
        """Format the budget."""
        return NOTHING if self.budget is None else money(self.budget)

    @property
    def shown_forecast(self) -> str:
        """Format the forecast, with a warning if the budget ends it: `⚠ $40.00, budget reached 1 Dec`."""
        if self.forecast is None:
            return NOTHING
        return f"\N{WARNING SIGN} {money(self.forecast)}, {self.reached}" if self.reached else money(self.forecast)

    def keep_to_budget(self) -> None:
        """Take what the budget will refuse out of the paces of an account and its models."""
        if self.budget is None or self.forecast is None or max(self.forecast, self.now.cost + 1) <= self.budget:
            return
        self.reached, left = "budget used up", max(0, self.budget - self.now.cost)
        if left:
            at = budget_reached_at(self.now.cost, self.budget, self.pace, self.period.until)
            self.reached = f"budget reached {at:%-d %b}"
        kept = left / (self.forecast - self.now.cost) if self.forecast > self.now.cost else 0.0
        self.refused = self.pace * (1 - kept)
        for line in (self, *self.models):
            line.pace *= kept

    @property
    def change(self) -> float | None:
        """Return by which share of the cost before the cost is higher; None if there was none, or one is not known."""
        if self.period.unequal_note or self.now.unpriced or self.then.unpriced or not self.then.cost:
            return None
        return self.now.cost / self.then.cost - 1

    @property
    def forecast(self) -> int | None:
        """Return the cost of the whole period at the pace of the last days; None if it is over, or prices lack."""
        period = self.period
        if not period.is_running or self.now.unpriced:
            return None
        return self.now.cost + round(self.pace * ((period.end - period.until) / ONE_DAY))


def _change_text(change: float) -> str:
    """Format a change: `+12.5 %`, or a factor from tenfold on."""
    if change >= TENFOLD:
        return f"\N{MULTIPLICATION SIGN}{change + 1:,.0f}"
    return f"{'+' if change > 0 else ''}{percent(change)}"


#: The rollups of the period so far, and of the time that it is compared with.
Spans = tuple[Sequence[Part], Sequence[Part]]


@dataclass(frozen=True, slots=True)
class Report:
    """The LISTED accounts with the highest cost, with lines of their models; the sums of all, and of the `rest`.

    `number` is that of all accounts, `before` the sum of the whole period before.
    """

    period: Period
    accounts: Sequence[Line]
    total: Line
    rest: Line
    number: int
    before: Figures

    @property
    def forecast_change(self) -> str:
        """Compare the forecast with the period before: `November 2026: $80.56 (+37 %)`; "" if one is not known."""
        before, forecast = self.before, self.total.forecast
        if forecast is None or before.unpriced or before.cost < NANO_DOLLARS:
            return ""
        return f"{self.period.whole_before}: {money(before.cost)} ({_change_text(forecast / before.cost - 1)})"

    @property
    def unlisted(self) -> int:
        """Return the number of accounts in `rest`."""
        return self.number - len(self.accounts)


def usage_report(period: Period, account_id: int | None = None) -> Report:
    """Return the report of all accounts, or of one."""
    scope = Scope(account_id=account_id)
    with repeatable_read():
        period, spans = _comparable(period)
        ranked = _ranked(period, spans, account_id)
        lines = _lines(period, spans, ranked[:LISTED])
        now = _sum(period.begin, period.until, scope)
        then = _sum(period.before, period.until_before, scope)
        before = _sum(period.before, period.begin, scope) if period.is_running else then
        pace = cost_pace(period.until, scope) if period.is_running else 0.0
    rest = Line(
        period,
        now=_difference(now, [line.now for line in lines]),
        then=_difference(then, [line.then for line in lines]),
        pace=max(0.0, pace - sum(line.pace + line.refused for line in lines)),
    )
    total = Line(period, now=now, then=then, pace=max(0.0, pace - sum(line.refused for line in lines)))
    return Report(period, lines, total, rest, len(ranked), before)


def _comparable(period: Period) -> tuple[Period, Spans]:
    """Return the rollups to read, and the period: cut if the quarter hours of the time before have been deleted."""
    now = account_parts(period.begin, period.until)
    try:
        return period, (now, account_parts(period.before, period.until_before))
    except TooOld:
        period = replace(period, is_cut=True)
        return period, (now, account_parts(period.before, period.until_before))


def _ranked(period: Period, spans: Spans, account_id: int | None) -> Sequence[int]:
    """Return the ids of the accounts of the report in its order: those with usage, or with a forecast."""
    if account_id is not None:
        return [account_id]
    now, then = spans
    return accounts_by_cost(now, within(then), recent_costs(period.until) if period.is_running else Q())


def _sum(begin: datetime, end: datetime, scope: Scope) -> Figures:
    """Return the figures of a span without times."""
    points = usage_series(begin=begin, end=end, scope=scope, timed=False)
    return Figures.sum_of(point.figures for point in points)


def _difference(whole: Figures, parts: Iterable[Figures]) -> Figures:
    listed = Figures.sum_of(parts)
    return Figures(*(getattr(whole, name) - getattr(listed, name) for name in SUMMED))


def _lines(period: Period, spans: Spans, accounts: Sequence[int]) -> list[Line]:
    """Return a line of each account that has usage, with lines of its models, in the order of `accounts`."""
    models: defaultdict[int, defaultdict[str, Line]] = defaultdict(lambda: defaultdict(lambda: Line(period)))
    for when, parts in zip(("now", "then"), spans, strict=True):
        for (account, model), figures in usage_by_account_and_model(parts, accounts):
            getattr(models[account][model], when).add(figures)
    for (account, model), pace in (cost_paces(period.until, accounts) if period.is_running else {}).items():
        models[account][model].pace = pace
    rows = Rollup.objects.filter(grain=Rollup.Grain.ACCOUNT_DAY)
    names = caller_names("account", set(models), rows, with_account=True)
    known = Account.objects.filter(pk__in=models).values_list("pk", "display_name", "monthly_cost_budget")
    about = {pk: (shown, budget) for pk, shown, budget in known}
    found = []
    for account in (each for each in accounts if each in models):
        for model, line in models[account].items():
            line.name = model
        lines = sorted(models[account].values(), key=lambda line: (-line.now.cost, -line.now.requests, line.name))
        now, then = (Figures.sum_of(getattr(line, when) for line in lines) for when in ("now", "then"))
        shown, budget = about.get(account, ("", None))
        whole = Line(period, names[account], account, shown or names[account], now, then, models=lines)
        whole.pace = sum(line.pace for line in lines)
        whole.budget = nano_dollars(budget) if period.has_budgets else None
        whole.keep_to_budget()
        found.append(whole)
    return found


@dataclass(frozen=True, slots=True)
class LogCheck:
    """A comparison of the report's sums with the log. `problem`: why it was not made; `is_possible`: on request it is.

    `requests` and `cost` are those of the log, `kept` those of the rollups, both of one snapshot of the database.
    """

    at: datetime
    requests: int = 0
    cost: int = 0
    kept: tuple[int, int] = (0, 0)
    problem: str = ""
    is_possible: bool = False

    @property
    def agrees(self) -> bool:
        """Return whether the report and the log have the same sums."""
        return not self.problem and self.kept == (self.requests, self.cost)


def log_check(report: Report, account_id: int | None = None, *, is_wanted: bool = False) -> LogCheck:
    """Compare a report with the log if that takes a fraction of a second, or a few seconds if it `is_wanted`."""
    period, now, requests = report.period, timezone.now(), report.total.now.requests
    first, _ = span_of_log()
    if requests and (first == EPOCH or has_usage_between(period.begin, first)):
        return LogCheck(now, problem="the log no longer has all requests of this period")
    if requests > CHECKED_AT_MOST:
        return LogCheck(now, problem="it has too many requests for this page: run manage.py check_rollups")
    if requests > CHECKED_AT_ONCE and not is_wanted:
        return LogCheck(now, problem="not checked yet", is_possible=True)
    begin, end = (datetime_of(minute) for minute in (floor(period.begin, QUARTER), ceiling(period.until, QUARTER)))
    scope = Scope(account_id=account_id)
    with repeatable_read():
        kept = _sum(begin, end, scope)
        logged, cost = log_totals(records_within(begin, end, scope))
    return LogCheck(now, logged, cost, (kept.requests, kept.cost))


#: The columns of the report and of its CSV, named as in the CSV of a key's holder.
COLUMNS = (
    *("account", "display_name", "model", "requests", "input_tokens", "cached_tokens", "output_tokens", "cost_usd"),
    *("unpriced_requests", "saved_cost_usd", "previous_cost_usd", "change_percent", "forecast_cost_usd"),
)


def csv_rows(period: Period, account_id: int | None = None) -> Iterator[list[list[Any]]]:
    """Return the rows of the report's CSV, by account and model, in batches; what is not known is empty."""
    period, spans = _comparable(period)
    ranked = _ranked(period, spans, account_id)

    def batch(accounts: Sequence[int]) -> list[list[Any]]:
        with repeatable_read():
            lines = _lines(period, spans, accounts)
        rows = [_csv_row(account, line) for account in lines for line in account.models]
        release_connections()  # a slow download does not take one from requests
        return rows

    return (batch(ranked[begin : begin + BATCH]) for begin in range(0, len(ranked), BATCH))


def _csv_row(account: Line, line: Line) -> list[Any]:
    now, change = line.now, None if line.change is None else f"{line.change * 100:.1f}"
    cost, before = (None if each.is_cost_unknown else dollars(each.cost) for each in (now, line.then))
    return [
        *(account.name, account.display_name, line.name),
        *(now.requests, now.input_tokens, now.cached_tokens, now.output_tokens),
        *(cost, now.unpriced, dollars(now.saved_cost), before, change),
        None if line.forecast is None else dollars(line.forecast),
    ]

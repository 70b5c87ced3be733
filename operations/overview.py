"""The first tab of an account's or a key's page: its state, limits, cost and forecast, usage, and last errors.

Usage is read from the rollups of 30 days, so the cost of the page does not grow with the log; of the log, only the
newest records are searched for errors. Users who may not view requests see the limits alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from http import HTTPStatus
from itertools import pairwise
from typing import Any
from urllib.parse import urlencode

from django.db.models import F, Sum
from django.urls import reverse
from django.utils import timezone
from unfold.components import BaseComponent, register_component

from accounts.admin.accounts import RECORDED
from accounts.admin.keys import STATE_BADGES, shown_state
from accounts.explain import Explanation, explain_key
from accounts.key_cache import account_subject, model_subject
from accounts.limit_usage import LIVE, LimitUsage, usage_of_scopes
from accounts.limits.types import LIMITS, LimitName, LimitSet
from accounts.models import Account, ApiKey
from core.formats import NOTHING, about_money, count, exact_money, known_money, money, percent
from core.money import NANO_DOLLARS
from monitoring.admin_report import may_see_usage
from monitoring.export import records_within
from monitoring.forecast import Forecast, budget_forecasts
from monitoring.models import VIEW_RECORDS, RequestRecord, Rollup
from monitoring.rollups.figures import Figures
from monitoring.rollups.periods import DAY as MINUTES_A_DAY
from monitoring.rollups.periods import ONE_DAY, Unit, minute_of
from monitoring.rollups.queries import Scope, usage_rankings, usage_series
from operations.dashboard.sections import Tile, chart, course_of, outcome_bars

DAYS = 30
#: How many keys, models and errors a page shows.
KEYS, MODELS, ERRORS = 10, 5, 5
#: Records of the log that are searched for errors: a few milliseconds.
SEARCHED = 10_000

Daily = dict[datetime, Figures]


@dataclass(frozen=True, slots=True)
class Bar:
    """A limit with its bar (see admin/limit_bar.html), and a sentence on when it is reached or what will be used."""

    title: str
    text: str
    percent: int
    outlook: str = ""


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A key, its usage in the last days, and the path of a line of its requests by day."""

    key: ApiKey
    state: str
    badge: str
    requests: str
    cost: str
    course: str


class Overview:
    """What the tab shows of an account, or of one of its keys."""

    def __init__(self, subject: Account | ApiKey, *, sees_usage: bool, sees_requests: bool) -> None:
        self.sees_usage, self.sees_requests = sees_usage, sees_requests
        self.now = timezone.now()
        self.key = subject if isinstance(subject, ApiKey) else None
        self.account: Account = subject.account if isinstance(subject, ApiKey) else subject
        self.scope = Scope(account_id=self.account.pk, key_id=self.key.pk if self.key else None)
        self.notes: list[str] = []
        self.begin = self.now.replace(hour=0, minute=0, second=0, microsecond=0) - (DAYS - 1) * ONE_DAY
        self.end = self.begin + DAYS * ONE_DAY
        self.by_model = self._by_model() if sees_usage else {}
        self.daily: Daily = defaultdict(Figures)
        for days in self.by_model.values():
            for day, figures in days.items():
                self.daily[day].add(figures)

    def _by_model(self) -> dict[str, Daily]:
        """Return the figures by model and day, without times."""
        found: dict[str, Daily] = defaultdict(dict)
        points = usage_series(begin=self.begin, end=self.end, scope=self.scope, unit=Unit.DAY, by="model", timed=False)
        for point in points:
            if point.start is not None:
                found[point.group or ""][point.start] = point.figures
        return found

    @cached_property
    def explained(self) -> Explanation | None:
        """Return whether a call of the key would be admitted now, and why not; None for an account."""
        return explain_key(self.key) if self.key else None

    @cached_property
    def limits(self) -> list[LimitUsage]:
        """Return the usage of all limits; of a key, also of those that it shares with its account and its makers."""
        if self.explained is not None:
            self.notes = self.explained.notes
            return self.explained.limits
        subjects = (account_subject(self.account), *map(model_subject, self.account.model_budgets.all()))
        report = usage_of_scopes([LimitSet(self.account.pk, subjects)])
        self.notes = [] if report.source == LIVE else [RECORDED]
        return report.limits

    @property
    def state(self) -> tuple[str, str]:
        """Return the state in words, and the colour of its badge."""
        own = shown_state(self.key) if self.key else "active" if self.account.is_active else "disabled"
        budgets = [each for each in self.limits if LIMITS[each.name].is_budget and not each.subject.model]
        is_over = own == "active" and any(each.percent >= 100 for each in budgets if each.limit is not None)
        return ("over budget", "danger") if is_over else (own, STATE_BADGES[own])

    @property
    def bars(self) -> list[Bar]:
        """Return the limits that are set, those of the month first."""
        limited = [each for each in self.limits if each.limit is not None]
        return [self._bar(each) for each in sorted(limited, key=lambda each: not LIMITS[each.name].is_budget)]

    def _bar(self, usage: LimitUsage) -> Bar:
        is_own = usage.owner.startswith("key" if self.key else "account")
        title = usage.title if is_own else f"{usage.title} ({usage.owner})"
        forecast = self.forecasts.get(usage)
        return Bar(title, usage.text, usage.percent, forecast.text if forecast else "")

    @cached_property
    def forecasts(self) -> dict[LimitUsage, Forecast]:
        """Return the forecasts of its own budgets, for those who may see usage."""
        own = [each for each in self.limits if each.owner.startswith("key" if self.key else "account")]
        return budget_forecasts(own, account_id=self.account.pk, now=self.now) if self.sees_usage else {}

    @property
    def tiles(self) -> list[Tile]:
        """Return the figures on top: the month's cost and its forecast, requests and failures of the last days."""
        cost = next(each for each in self.limits if each.name is LimitName.MONTHLY_COST and not each.subject.model)
        used, total = cost.used or 0, self.total
        of = "no budget" if cost.limit is None else f"of {money(cost.limit)}"
        forecast = self.forecasts.get(cost)
        failed = percent(total.failed / total.requests) if total.requests else NOTHING
        refused = f"{count(total.limited)} over a limit, {count(total.invalid)} invalid"
        log = report = f"{reverse('admin:usage_report')}?{urlencode({'account': self.account.name})}"
        if self.sees_requests:
            log = reverse("admin:monitoring_requestrecord_changelist") + self.log_query
        return [
            Tile("Cost this month", money(used), exact_money(used), of, report),
            *(
                [Tile(f"By {forecast.last_day}", about_money(forecast.expected), "", "at this pace", report)]
                if forecast
                else []
            ),
            Tile(
                f"Requests, {DAYS} days",
                count(total.requests),
                f"{total.requests:,}",
                f"{count(total.answered)} answered",
                log,
            ),
            Tile(
                f"Failed, {DAYS} days",
                failed,
                f"{total.failed:,}",
                f"{count(total.failed)} failed, {refused}",
                f"{log}&status=failed",
            ),
        ]

    @property
    def total(self) -> Figures:
        """Return the figures of all days."""
        return Figures.sum_of(self.daily.values())

    @property
    def models(self) -> list[tuple[str, Figures]]:
        """Return the models with the highest cost."""
        sums = {model: Figures.sum_of(days.values()) for model, days in self.by_model.items()}
        return sorted(sums.items(), key=lambda each: (-each[1].cost, -each[1].requests, each[0]))[:MODELS]

    @property
    def chart_data(self) -> dict[str, Any]:
        """Return the charts and their shared axis, which static/site/charts.js draws; a day leads to its requests."""
        days = [self.begin + ONE_DAY * number for number in range(DAYS)]
        log = reverse("admin:monitoring_requestrecord_changelist") + self.log_query
        names = [f"{day:%Y-%m-%d}" for day in [*days, self.end]]
        axis = {
            "time": "Day (UTC)",
            "labels": [f"{day.day} {day:%b}" for day in days],
            "names": names[:-1],
            "queries": [f"{log}&from={day}&until={end}" for day, end in pairwise(names)] if self.sees_requests else [],
        }
        total, parts = self.total, [self.daily.get(day, Figures()) for day in days]
        asked = f"{count(total.requests)} requests, {count(total.failed)} failed."
        paid = f"{total.shown_cost.capitalize()} in total."
        costs = [{"name": "cost", "values": [part.cost / NANO_DOLLARS for part in parts]}]
        charts = [
            chart("cost", f"Cost, last {DAYS} days", "US dollars per day", costs, paid, "money"),
            chart("requests", f"Requests, last {DAYS} days", "Requests per day", outcome_bars(parts), asked),
        ]
        return {"axis": axis, "charts": charts}

    @property
    def keys(self) -> list[KeyRow]:
        """Return the account's busiest keys, then those used last."""
        ranks = {
            rank.key_id: rank
            for rank in usage_rankings(begin=self.begin, end=self.end, scope=self.scope, limit=KEYS).keys
        }
        own = self.account.api_keys.select_related("account", "tier")
        others = own.exclude(pk__in=ranks).order_by(F("last_used_at").desc(nulls_last=True), "-pk")
        shown = [*sorted(own.filter(pk__in=ranks), key=lambda key: list(ranks).index(key.pk)), *others[:KEYS]][:KEYS]
        lines = self._requests_by_day(shown)
        rows = []
        for key in shown:
            rank, state = ranks.get(key.pk), shown_state(key)
            requests, cost = (count(rank.requests), known_money(rank.cost, rank.unpriced)) if rank else ("0", NOTHING)
            rows.append(KeyRow(key, state, STATE_BADGES[state], requests, cost, course_of(lines[key.pk])))
        return rows

    def _requests_by_day(self, keys: Sequence[ApiKey]) -> dict[int, list[int]]:
        first = minute_of(self.begin)
        found = {key.pk: [0] * DAYS for key in keys}
        of_keys = {"account_id": self.account.pk, "key_id__in": list(found)}
        rows = Rollup.objects.filter(grain=Rollup.Grain.KEY_DAY, start__gte=first, **of_keys)
        for key_id, start, requests in rows.order_by().values_list("key_id", "start").annotate(Sum("requests")):
            if (day := (start - first) // MINUTES_A_DAY) < DAYS:
                found[key_id][day] = int(requests)
        return found

    @property
    def errors(self) -> list[RequestRecord]:
        """Return the newest errors among the newest records of the log."""
        if not self.total.requests - self.total.answered:
            return []
        newest = records_within(self.begin, scope=self.scope).order_by("-admitted_at", "-pk")
        edge = newest.values_list("admitted_at", flat=True)[SEARCHED : SEARCHED + 1].first()
        recent = newest if edge is None else newest.filter(admitted_at__gt=edge)
        return list(recent.filter(status__gte=HTTPStatus.BAD_REQUEST)[:ERRORS])

    @property
    def log_query(self) -> str:
        """Return the request log's query string for its requests."""
        return "?" + urlencode({"account": self.account.name, **({"key": self.key.prefix} if self.key else {})})


@register_component
class OverviewTab(BaseComponent):  # type: ignore[misc]  # unfold is untyped
    """The context of admin/overview.html: `overview`, and whether the user sees usage, and single requests."""

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """Return the context for the account or key `subject`."""
        sees_requests = self.request.user.has_perm(VIEW_RECORDS)
        sees_usage = may_see_usage(self.request)
        return {
            **kwargs,
            "overview": Overview(kwargs["subject"], sees_usage=sees_usage, sees_requests=sees_requests),
            "sees_usage": sees_usage,
            "sees_requests": sees_requests,
        }

"""The sections of the dashboard: tiles, charts and lists.

A tile has a total, its change, its course as a small line, and a link to the records. Charts are plain values by part
of the span, which static/site/charts.js draws. The lists are the accounts and keys with the highest cost, recent
failures, open alerts, and the records that wait for the ingester.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import urlencode

import structlog
from django.urls import reverse
from django.utils import timezone
from redis.exceptions import RedisError

from accounts.models import Account
from accounts.selectors import account_titles
from core.formats import (
    NOTHING,
    about_milliseconds,
    count,
    duration,
    exact_money,
    known_money,
    money,
    percent,
    quantity,
)
from core.money import NANO_DOLLARS
from core.ttl_cache import TtlCache
from monitoring.export import records_within
from monitoring.ingester import ingest_backlog
from monitoring.models import OUTCOMES, Alert, Outcome, RequestRecord, Rollup
from monitoring.rollups.figures import QUANTILES, Figures
from monitoring.rollups.periods import HOUR, MINUTE, Unit, minute_of
from monitoring.rollups.queries import Rank, Rankings, Scope, usage_rankings, usage_series
from monitoring.selectors import has_many_keys
from monitoring.stories import cause
from operations.alerts.conditions import LEVELS, level_of, topic_of
from operations.dashboard.data import LONG, Reading
from operations.dashboard.query import DashboardQuery, Span
from operations.health import LAG_SECONDS

log = structlog.get_logger(__name__)

#: A relative change below the first is shown as none (they are in whole percent); one below the second is noise, which
#: is neither better nor worse, as is one of fewer requests than the third. Changes of shares are a tenth of these.
LEAST_CHANGE, NOISE, FEW = 0.005, 0.1, 20


@dataclass(frozen=True, slots=True)
class Change:
    """The change of a figure from the time before: `text`, its `tone` (better, worse, even), and `full`, a sentence."""

    text: str
    tone: str
    full: str


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure: rounded and exact, more about it, the URL of what it was counted from, its change and its course.

    `course` is its value by part of the span as the path of a line (SVG), see `course_of`.
    """

    name: str
    value: str
    exact: str
    more: str
    url: str
    change: Change | None = None
    course: str = ""


Of = Callable[[Figures], float | int | None]
Write = Callable[[Any], str]


def tiles(asked: DashboardQuery, reading: Reading, *, is_outage: bool) -> list[Tile]:
    """Return the row of tiles. In an outage nothing is better or worse: failed calls are quick and cheap."""
    total, starts = reading.total, asked.span.starts()
    times: Sequence[float | None] = total.latency_quantiles() or (None, None)
    first: Sequence[float | None] = total.first_token_quantiles() or (None,)
    refused = f"{count(total.limited)} limited, {count(total.invalid)} invalid"
    unpriced = f"{count(total.unpriced)} without a price" if total.unpriced else "US dollars"
    log_url = reverse("admin:monitoring_requestrecord_changelist")

    def tile(
        name: str, of: Of, write: Write, exact: str, more: str, direction: int = 0, **log_filter: str | None
    ) -> Tile:
        value = of(total)
        shown = NOTHING if value is None else write(value)
        query = asked.log_query(**{name: value for name, value in log_filter.items() if value is not None})
        course = [of(reading.parts[start]) if start in reading.parts else None for start in starts]
        changed = change(of, write, reading, 0 if is_outage else direction)
        return Tile(name, shown, exact, more, log_url + query, changed, course_of(course))

    failure_rate, hit_rate = _share("failed", "requests"), _share("cache_hits", "cache_lookups")
    p95_of = partial(_quantile, wanted=0.95)
    latency, first_token = p95_of(Figures.latency_quantiles), p95_of(Figures.first_token_quantiles)
    failed = f"{count(total.failed)} failed; {refused}"
    p95, p50 = (f"{times[1]:.0f}" if times[1] is not None else None), about_milliseconds(times[0])
    lookups, within = f"{total.cache_hits:,} of {total.cache_lookups:,}", "accurate to 5 %"
    hits, written = quantity(total.cache_hits, "hit"), f"{count(total.output_tokens)} output"
    risen = "" if is_outage else _risen(asked, reading)
    cost = tile("Cost", lambda each: each.cost, money, total.exact_cost, risen or unpriced, -1 if risen else 0)
    return [
        tile("Requests", lambda each: each.requests, count, f"{total.requests:,}", f"{count(total.answered)} answered"),
        tile("Failed", failure_rate, percent, f"{total.failed:,} of {total.requests:,}", failed, -1, status="failed"),
        tile("Latency p95", latency, about_milliseconds, within, f"p50 {p50}", -1, slower=p95),
        tile(
            "First token p95",
            first_token,
            about_milliseconds,
            within,
            f"p50 {about_milliseconds(first[0])}",
            -1,
            stream="1",
        ),
        tile("Cache hit rate", hit_rate, percent, lookups, hits, 1, cache="found"),
        tile("Tokens", lambda each: each.tokens, count, f"{total.tokens:,}", written),
        replace(cost, value=total.shown_cost),
        tile("Saved", lambda each: each.saved_cost, money, exact_money(total.saved_cost), "by the cache", 1),
    ]


def _risen(asked: DashboardQuery, reading: Reading) -> str:
    """Return the model whose cost rose most, and its dearest caller, if the cost more than doubled; else ""."""
    now, before, span = reading.complete, reading.before, asked.span
    if before is None or not before.cost or now.cost <= 2 * before.cost or min(now.requests, before.requests) < FEW:
        return ""
    earlier = usage_series(begin=span.before[0], end=span.before[1], scope=asked.scope, by="model", timed=False)
    rises = {model: sum(parts.values()) for model, parts in reading.costs.items()}
    for point in earlier:
        rises[point.group or ""] = rises.get(point.group or "", 0) - point.figures.cost
    model = max(rises, key=lambda name: rises[name])
    callers = top_callers(replace(asked, scope=replace(asked.scope, model=model)))
    first = next(iter([*callers.keys, *callers.accounts]), None)
    return f"{model or NO_MODEL}{f', {first.name}: {first.cost}' if first else ''}"


def course_of(values: Sequence[float | None]) -> str:
    """Return the path (SVG, 100 wide, 20 high) of the course of values, from 0 up; None is a gap."""
    highest = max((value for value in values if value), default=0) or 1
    step = 100 / max(len(values) - 1, 1)
    path, is_drawing = "", False
    for index, value in enumerate(values):
        if value is not None:
            path += f"{'L' if is_drawing else 'M'}{index * step:.1f} {19 - value / highest * 18:.1f}"
            path += "" if is_drawing else "h1"  # a lone point is seen
        is_drawing = value is not None
    return path


def _share(part: str, whole: str) -> Of:
    return lambda each: getattr(each, part) / getattr(each, whole) if getattr(each, whole) else None


Quantiles = Callable[[Figures, tuple[float, ...]], list[float] | None]


def _quantile(quantiles: Quantiles, wanted: float) -> Of:
    return lambda each: next(iter(quantiles(each, (wanted,)) or ()), None)


def change(of: Of, write: Write, reading: Reading, direction: int) -> Change:
    """Compare a value of the complete part of the span with that of the same length of time before.

    `direction` is 1 if more is better, -1 if it is worse, else 0. The change of a share is in percentage points.
    """
    is_share = write is percent
    if reading.before is None:
        return Change("no earlier data", "even", "The period before is not known.")
    now, before = of(reading.complete), of(reading.before)
    if now is None or before is None or (not before and not is_share):
        return Change("none before" if not before else "none now", "even", "There is nothing to compare with.")
    by = now - before if is_share else (now - before) / before
    full = f"{write(now)}, after {write(before)} in the period before; what is not over yet is left out."
    size = abs(by) * 10 if is_share else abs(by)
    if size < LEAST_CHANGE:
        return Change("no change", "even", full)
    amount = f"{abs(by) * 100:.0f} %" if abs(by) < 10 else f"{abs(by):,.0f} times more"
    if is_share:
        amount = f"{abs(by) * 100:.1f} points"
    is_even = not direction or size < NOISE or min(reading.complete.requests, reading.before.requests) < FEW
    tone = "even" if is_even else "better" if (by > 0) == (direction > 0) else "worse"
    return Change(f"{'▲' if by > 0 else '▼'} {amount}", tone, full)


#: Most series in a chart; the smallest ones are added up as REST.
SERIES, REST = 6, "others"
NO_MODEL = "no model"
Set = dict[str, Any]


def chart(name: str, title: str, unit: str, sets: list[Set], summary: str, numbers: str = "count") -> Set:
    """Return a chart of bars as static/site/charts.js draws it."""
    shown = {"id": name, "title": title, "kind": "bars", "numbers": numbers, "unit": unit}
    return {**shown, "sets": sets, "summary": summary}


#: The bars of a chart of requests: name, figure, look (its colour is that of the account page), and the log's filter.
OUTCOME_BARS = (
    ("answered", "answered", 0, "status=ok"),
    ("over a limit", "limited", 1, "status=limited"),
    ("failed", "failed", 3, "status=failed"),
    ("invalid", "invalid", 4, "status=refused"),
)


def outcome_bars(parts: Sequence[Figures]) -> list[Set]:
    """Return the requests of each part of a span by outcome."""
    return [
        {"name": name, "look": look, "filter": asked, "values": [getattr(part, figure) for part in parts]}
        for name, figure, look, asked in OUTCOME_BARS
    ]


def charts(asked: DashboardQuery, reading: Reading) -> dict[str, Any]:
    """Return the charts in the order of the page, and the axis that they share with the log's query of each part.

    The `filter` of a set narrows that query to what it counts.
    """
    starts, total, per = asked.span.starts(), reading.total, asked.span.unit or "minute"
    labels, names = _axis(asked.span, starts)
    ends = [*starts[1:], asked.span.end]
    queries = [
        asked.log_query(**{"from": f"{begin:%Y-%m-%dT%H:%MZ}", "until": f"{end:%Y-%m-%dT%H:%MZ}"})
        for begin, end in zip(starts, ends, strict=True)
    ]
    parts = [reading.parts.get(start, Figures()) for start in starts]

    def bars(name: str, of: Of) -> Set:
        return {"name": name, "values": [of(each) for each in parts]}

    def line(name: str, quantiles: Quantiles, wanted: str) -> tuple[Set, str]:
        """Return a line of one quantile, without a value where there were no requests, and that of the whole span."""
        of = _quantile(quantiles, QUANTILES[wanted])
        values = [of(reading.parts[start]) if start in reading.parts else None for start in starts]
        rounded = [None if value is None else round(value, 1) for value in values]
        return {"name": name, "values": rounded}, f"{name} {about_milliseconds(of(total))}"

    def lines(name: str, title: str, unit: str, *drawn: tuple[Set, str]) -> Set:
        sets, texts = zip(*drawn, strict=True)
        return {**chart(name, title, unit, list(sets), f"Overall {', '.join(texts)}.", "time"), "kind": "lines"}

    tokens = [
        bars("input", lambda each: each.input_tokens - each.cached_tokens),
        bars("cached input", lambda each: each.cached_tokens),
        bars("output", lambda each: each.output_tokens),
    ]
    seen = f"{count(total.requests)} requests, {count(total.failed)} of them failed."
    used = f"{count(total.input_tokens)} in, {count(total.output_tokens)} out."
    spent = f"{total.shown_cost.capitalize()} in total."
    whole, first = Figures.latency_quantiles, Figures.first_token_quantiles
    p50_p95 = ("p50", "p95")
    drawn = [
        chart("traffic", "Requests and errors", f"Requests per {per}", outcome_bars(parts), seen),
        lines("latency", "Latency", "Time to the full answer", *(line(name, whole, name) for name in p50_p95)),
        lines(
            "first-token",
            "Time to first token (streams)",
            "Time to the first token",
            *(line(name, first, name) for name in p50_p95),
        ),
        lines(
            "slowest",
            "Slowest 1 % (p99)",
            "Time",
            line("full answer", whole, "p99"),
            line("first token", first, "p99"),
        ),
        chart("cost", "Cost by model", f"US dollars per {per}", _costs(reading, starts), spent, "money"),
        chart("tokens", "Tokens", f"Tokens per {per}", tokens, used),
    ]
    axis = {"labels": labels, "names": names, "time": f"{per.capitalize()} (UTC)", "queries": queries}
    return {"axis": axis, "charts": drawn}


def _axis(span: Span, starts: Sequence[datetime]) -> tuple[list[str], list[str]]:
    """Return the labels below a chart, and the names of the parts in tooltips and tables."""
    if span.unit is Unit.DAY:
        return [f"{start.day} {start:%b}" for start in starts], [f"{start:%Y-%m-%d}" for start in starts]
    if span.unit is Unit.MONTH:
        return [f"{start:%b %Y}" for start in starts], [f"{start:%Y-%m}" for start in starts]
    labels = [f"{start.day} {start:%b %H:%M}" if span.length > LONG else f"{start:%H:%M}" for start in starts]
    step = MINUTE if span.unit is None else HOUR
    return labels, [f"{start:%Y-%m-%d %H:%M} to {start + step:%H:%M} UTC" for start in starts]


def _costs(reading: Reading, starts: Sequence[datetime]) -> list[Set]:
    """Return the cost by model: the most expensive ones, and the rest added up."""
    costs = {model: sum(parts.values()) for model, parts in reading.costs.items()}
    ranked = [model for model in sorted(costs, key=lambda model: (-costs[model], model)) if costs[model]]
    shown = ranked if len(ranked) <= SERIES else ranked[: SERIES - 1]
    groups = [(model or NO_MODEL, [model]) for model in shown]
    if len(shown) < len(ranked):
        groups.append((REST, ranked[len(shown) :]))

    def values(models: Sequence[str]) -> list[float]:
        return [sum(reading.costs[model].get(start, 0) for model in models) / NANO_DOLLARS for start in starts]

    return [
        {"name": name, "values": values(models), "filter": urlencode({"model": name}) if models == [name] else ""}
        for name, models in groups
    ]


SHOWN, RECENT = 5, 10
#: Failed records that are read at most, and different causes that a group of them names.
FAILURES, CAUSES = 200, 3
#: Most names that a filter suggests, and how long ago models and endpoints were used; others can be typed.
SUGGESTED, SUGGESTED_SINCE = 200, timedelta(days=90)


@dataclass(frozen=True, slots=True)
class RankRow:
    """Usage of an account or a key, formatted; and the query strings of dashboard and request log for it alone."""

    name: str
    query: str
    log_query: str
    requests: str
    failed: str
    tokens: str
    cost: str


@dataclass(frozen=True, slots=True)
class Lag:
    """A sentence about the records that wait for the ingester; `is_late` if they wait too long."""

    text: str
    is_late: bool = False


@dataclass(frozen=True, slots=True)
class TopCallers:
    """The accounts and keys with the highest cost in the span; without accounts if the query is for one key.

    With many keys, those of all accounts are not ranked, and `hint` says so. `since` is the start of the ranking if it
    is before the span's: rankings cover whole quarter hours or days.
    """

    accounts: list[RankRow]
    keys: list[RankRow]
    hint: str
    since: datetime | None


def _rankings(ranked: tuple[datetime, datetime, Scope], *, with_keys: bool = False) -> Rankings:
    begin, end, scope = ranked
    with_keys = with_keys or scope.account_id is not None
    return usage_rankings(begin=begin, end=end, scope=scope, limit=SHOWN, with_keys=with_keys)


#: Rankings with many keys, by what is ranked: at most a minute old, and with keys only of a single account.
recent_rankings: TtlCache[tuple[datetime, datetime, Scope], Rankings] = TtlCache(
    _rankings, max_age=60, from_end=True, size=100
)


def top_callers(asked: DashboardQuery) -> TopCallers:
    """Return the accounts and keys with the highest cost in the span."""
    span = asked.span
    ranked = (span.begin, span.reach, asked.scope)
    is_many = has_many_keys()
    found = recent_rankings.get(ranked) if is_many else _rankings(ranked, with_keys=True)

    titles = account_titles(rank.account for rank in (*found.accounts, *found.keys))

    def row(rank: Rank) -> RankRow:
        whose = {"account": rank.account, **({"key": rank.key} if rank.key else {})}
        return RankRow(
            name=" / ".join(filter(None, (titles[rank.account], rank.key))),
            query=asked.query(**whose),
            log_query=asked.log_query(**whose),
            requests=count(rank.requests),
            failed=percent(rank.failed / rank.requests) if rank.failed else "0",
            tokens=count(rank.tokens),
            cost=known_money(rank.cost, rank.unpriced),
        )

    return TopCallers(
        accounts=[] if asked.scope.key_id else [row(rank) for rank in found.accounts],
        keys=[row(rank) for rank in found.keys],
        hint="Choose an account to see its top keys." if is_many and asked.scope.account_id is None else "",
        since=found.begin if found.begin < span.begin else None,
    )


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failed requests of one account, model, status and code: the newest one, their number, and the log's query."""

    newest: RequestRecord
    account: str
    causes: str
    number: str
    query: str


def recent_failures(asked: DashboardQuery, number: int) -> list[FailureGroup]:
    """Return the newest FAILURES failed (5xx) records of the span in at most `number` groups; they have an index."""
    records = records_within(asked.span.begin, asked.span.end, asked.scope).filter(OUTCOMES[Outcome.FAILED])
    latest = list(records.order_by("-admitted_at", "-pk")[:FAILURES])
    alike: dict[tuple[str, str, str, str], list[RequestRecord]] = {}
    for record in latest:
        values = (record.account_name, record.model, str(record.status), record.error_code)
        alike.setdefault(values, []).append(record)
    groups, titles = [], account_titles(record.account_name for record in latest)
    for values, found in list(alike.items())[:number]:
        filters = zip(("account", "model", "status", "error_code"), values, strict=True)
        requests = count(sum(each.count for each in found))
        groups.append(
            FailureGroup(
                newest=found[0],
                account=titles[found[0].account_name],
                causes="; ".join(list(dict.fromkeys(map(cause, found)))[:CAUSES]),
                number=requests if len(latest) < FAILURES else f"at least {requests}",
                query=asked.log_query(**{name: value for name, value in filters if value}),
            )
        )
    return groups


def open_alerts(*, but: Collection[str] = ()) -> list[Alert]:
    """Return the newest open alerts, those on budgets last; for each budget, only its highest level.

    Alerts whose subject is in `but` are left out.
    """
    going_on = Alert.objects.filter(ended_at=None).exclude(subject__in=but).order_by("-pk")
    of_service = going_on.exclude(kind=Alert.Kind.BUDGET)[:RECENT]
    of_budgets = going_on.filter(kind=Alert.Kind.BUDGET)[: RECENT * len(LEVELS)]
    rising = sorted(of_budgets, key=lambda alert: level_of(alert.subject))
    highest = {topic_of(alert.subject): alert for alert in rising}.values()
    return [*of_service, *sorted(highest, key=lambda alert: -alert.pk)][:RECENT]


def ingest_lag() -> Lag:
    """Return how many records wait for the ingester, and for how long the oldest has."""
    try:
        backlog = ingest_backlog()
    except RedisError as error:
        log.warning("backlog_unknown", cause=type(error).__name__)
        return Lag("The state store is down: the number of waiting records is unknown.", is_late=True)
    if not backlog.records:
        return Lag("All usage is counted: no record is waiting.")
    waiting = "1 record is" if backlog.records == 1 else f"{count(backlog.records)} records are"
    waited = duration(backlog.seconds)
    return Lag(f"{waiting} waiting to be counted, the oldest for {waited}.", is_late=backlog.seconds > LAG_SECONDS)


def suggestions() -> dict[str, list[str]]:
    """Return suggestions for the filters: names of accounts, models and endpoints."""
    lately = minute_of(timezone.now() - SUGGESTED_SINCE)
    used = Rollup.objects.filter(grain=Rollup.Grain.PLATFORM_DAY, start__gte=lately).order_by()
    pairs = set(used.values_list("model", "endpoint").distinct()[:SUGGESTED])
    return {
        "account": list(Account.objects.values_list("name", flat=True)[:SUGGESTED]),
        "model": sorted({model for model, _ in pairs if model}),
        "endpoint": sorted({endpoint for _, endpoint in pairs}),
    }

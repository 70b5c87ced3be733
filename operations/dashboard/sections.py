"""The sections of the dashboard: tiles, charts and lists.

Numbers have the same format as on the public pages (static/site/format.js). A tile has a total, its change and a link
to the records. Charts are plain values by part of the span, which static/site/charts.js draws. The lists are the
accounts and keys with the highest cost, recent failures, open alerts, and the records that wait for the ingester.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import structlog
from django.db.models import QuerySet
from redis.exceptions import RedisError

from accounts.models import Account
from core.money import NANO_DOLLARS, count, exact_money, known_money, money
from monitoring.export import Selection
from monitoring.ingester import ingest_backlog
from monitoring.models import Alert, RequestRecord, Rollup
from monitoring.records import OUTCOMES, Outcome
from monitoring.rollups.figures import QUANTILES, Figures
from monitoring.rollups.periods import Unit
from monitoring.rollups.queries import Rank, usage_rankings
from operations.alerts.budgets import LEVELS, level_of, topic_of
from operations.dashboard.data import Reading
from operations.dashboard.query import DashboardQuery
from operations.health import LAG_SECONDS

log = structlog.get_logger(__name__)

UNKNOWN = "\N{EN DASH}"


def milliseconds(ms: float | None) -> str:
    """Format milliseconds as 340 ms or 1.25 s; None as a dash."""
    if ms is None:
        return UNKNOWN
    if ms >= 1000:
        return f"{ms / 1000:.{2 if ms < 10_000 else 1}f} s"
    return f"{ms:.1f} ms".replace(".0 ", " ") if ms < 10 else f"{ms:.0f} ms"


def percent(share: float | None) -> str:
    """Format a share (0 to 1) as 36 % or 36.4 %; None as a dash."""
    return UNKNOWN if share is None else f"{share * 100:.1f}".removesuffix(".0") + " %"


def duration(seconds: float) -> str:
    """Format seconds as 42 s, 12 min, 5 h or 6 days."""
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


P95 = (0.95,)
#: A relative change below this is shown as none: changes are shown in whole percent.
LEAST_CHANGE = 0.005


@dataclass(frozen=True, slots=True)
class Change:
    """The change of a figure from the time before: a short `text`, the `tone` (better, worse, even), a full `told`."""

    text: str
    tone: str
    told: str


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure: rounded and exact, more about it, its change, and the request log's query string for its records."""

    name: str
    value: str
    exact: str
    more: str
    change: Change
    query: str


@dataclass(frozen=True, slots=True)
class Measure:
    """The measure of a tile: `of` returns its value (None without data), `write` formats it.

    `direction` is 1 if more is better, -1 if it is worse, else 0. The change of a share is shown in percentage points.
    """

    of: Callable[[Figures], float | None]
    write: Callable[[float], str]
    direction: int = 0
    is_share: bool = False


def tiles(asked: DashboardQuery, reading: Reading) -> list[Tile]:
    """Return the row of tiles."""
    total = reading.total
    times, first = total.latency_quantiles(), total.first_token_quantiles()
    slow = {"slower": f"{times[1]:.0f}"} if times else {}

    def tile(name: str, measure: Measure, exact: str, more: str, **query: str) -> Tile:
        value = measure.of(total)
        shown = UNKNOWN if value is None else measure.write(value)
        return Tile(name, shown, exact, more, change(measure, reading), asked.log_query(**query))

    asked_cache = total.cache_hits + total.misses
    return [
        tile("Requests", REQUESTS, f"{total.requests:,}", f"{count(_answered(total))} answered"),
        tile("Failed", ERRORS, f"{total.failed:,} of {total.requests:,}", _errors(total), status="failed"),
        tile("Latency p95", LATENCY, "within 5 %", f"p50 {milliseconds(times[0] if times else None)}", **slow),
        tile(
            "First token p95", FIRST_TOKEN, "within 5 %", f"p50 {milliseconds(first[0] if first else None)}", stream="1"
        ),
        tile(
            "Cache hit rate",
            HIT_RATE,
            f"{total.cache_hits:,} of {asked_cache:,}",
            f"{count(total.cache_hits)} hits",
            cache="found",
        ),
        tile("Tokens", TOKENS, f"{_tokens(total):,}", f"{count(total.output_tokens)} written"),
        replace(
            tile("Cost", COST, known_money(total.cost, total.unpriced, exact_money), _unpriced(total) or "US dollars"),
            value=known_money(total.cost, total.unpriced),
        ),
        tile("Saved", SAVED, exact_money(total.saved_cost), "by cache and sharing"),
    ]


def change(measure: Measure, reading: Reading) -> Change:
    """Compare the complete part of the span with the same length of time before."""
    if reading.before is None:
        return Change("nothing to compare", "even", "The time before is not known.")
    now, before = measure.of(reading.complete), measure.of(reading.before)
    if now is None or before is None or (not before and not measure.is_share):
        return Change("none before" if not before else "none now", "even", "There is nothing to compare with.")
    by = now - before if measure.is_share else (now - before) / before
    told = f"{measure.write(now)} now, {measure.write(before)} in the time before; what is not over yet left out."
    if abs(by) < (LEAST_CHANGE / 10 if measure.is_share else LEAST_CHANGE):
        return Change("as before", "even", told)
    amount = f"{abs(by) * 100:.1f} points" if measure.is_share else _percent(abs(by))
    tone = "even" if not measure.direction else "better" if (by > 0) == (measure.direction > 0) else "worse"
    return Change(f"{'▲' if by > 0 else '▼'} {amount}", tone, told)


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %") if share < 10 else f"{share:,.0f} times more"


def _answered(figures: Figures) -> int:
    return figures.requests - figures.invalid - figures.limited - figures.failed


def _errors(figures: Figures) -> str:
    refused = f"{count(figures.limited)} limited, {count(figures.invalid)} invalid"
    return f"{count(figures.failed)} failed; {refused}"


def _unpriced(figures: Figures) -> str:
    return f"{count(figures.unpriced)} without a price" if figures.unpriced else ""


def _tokens(figures: Figures) -> int:
    return figures.input_tokens + figures.output_tokens


def _p95(values: list[float] | None) -> float | None:
    return None if values is None else values[0]


def _of_requests(figures: Figures) -> float | None:
    return figures.failed / figures.requests if figures.requests else None


def _hit_rate(figures: Figures) -> float | None:
    found = figures.cache_hits + figures.misses
    return figures.cache_hits / found if found else None


REQUESTS = Measure(lambda figures: figures.requests, lambda value: count(int(value)))
ERRORS = Measure(_of_requests, percent, direction=-1, is_share=True)
LATENCY = Measure(lambda figures: _p95(figures.latency_quantiles(P95)), milliseconds, direction=-1)
FIRST_TOKEN = Measure(lambda figures: _p95(figures.first_token_quantiles(P95)), milliseconds, direction=-1)
HIT_RATE = Measure(_hit_rate, percent, direction=1, is_share=True)
TOKENS = Measure(_tokens, lambda value: count(int(value)))
COST = Measure(lambda figures: figures.cost, lambda value: money(int(value)))
SAVED = Measure(lambda figures: figures.saved_cost, lambda value: money(int(value)), direction=1)

#: Most series in a chart; the smallest ones are added up as REST.
SERIES = 6
REST = "others"
NO_MODEL = "no model"
#: With few requests, p95 and p99 are the same request.
OVERLAP = "With few timed requests, the lines of p95 and p99 coincide."

Value = float | int | None
Set = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Axis:
    """The parts of the span: their starts, the labels below a chart, and the names in tooltips and tables."""

    starts: Sequence[datetime]
    labels: Sequence[str]
    names: Sequence[str]
    per: str

    @property
    def shared(self) -> dict[str, Any]:
        """Return the entries that all charts share."""
        return {"labels": self.labels, "names": self.names, "time": f"{self.per.capitalize()} (UTC)"}


def charts(asked: DashboardQuery, reading: Reading) -> list[dict[str, Any]]:
    """Return the data of the charts, in the order of the page."""
    axis = _axis(asked)
    made = (_traffic, _latency, _first_token, _tokens_chart, _cost)
    found = [{**axis.shared, **each(axis, reading)} for each in made]
    return [{**each, **({"note": OVERLAP} if each["kind"] == "lines" else {})} for each in found]


def _axis(asked: DashboardQuery) -> Axis:
    starts = asked.span.starts()
    unit = asked.span.unit
    if unit is None or unit is Unit.HOUR:
        is_long = asked.span.length > timedelta(days=2)
        labels = [_clock(start, with_day=is_long) for start in starts]
        step = timedelta(minutes=1) if unit is None else timedelta(hours=1)
        names = [f"{start:%Y-%m-%d %H:%M} to {start + step:%H:%M} UTC" for start in starts]
    elif unit is Unit.DAY:
        labels, names = [f"{start.day} {start:%b}" for start in starts], [f"{start:%Y-%m-%d}" for start in starts]
    else:
        labels, names = [f"{start:%b %Y}" for start in starts], [f"{start:%Y-%m}" for start in starts]
    return Axis(starts, labels, names, unit or "minute")


def _clock(start: datetime, *, with_day: bool) -> str:
    return f"{start.day} {start:%b %H:%M}" if with_day else f"{start:%H:%M}"


def _values(axis: Axis, reading: Reading, of: Callable[[Figures], Value], absent: Value = 0) -> list[Value]:
    """Return a value for each part, and `absent` for parts without requests: 0 requests, but no latency."""
    return [of(reading.parts[start]) if start in reading.parts else absent for start in axis.starts]


def _traffic(axis: Axis, reading: Reading) -> dict[str, Any]:
    total = reading.total
    # The looks (colours) are the same as on the account page.
    columns: list[tuple[str, int, Callable[[Figures], Value]]] = [
        ("answered", 0, lambda each: each.requests - each.invalid - each.limited - each.failed),
        ("over a limit", 1, lambda each: each.limited),
        ("failed", 3, lambda each: each.failed),
        ("invalid", 4, lambda each: each.invalid),
    ]
    sets = [{"name": name, "look": look, "values": _values(axis, reading, of)} for name, look, of in columns]
    summary = f"{count(total.requests)} requests, {count(total.failed)} of them failed."
    return _chart("traffic", "Requests and errors", "bars", "count", f"Requests per {axis.per}", sets, summary)


def _latency(axis: Axis, reading: Reading) -> dict[str, Any]:
    values = reading.total.latency_quantiles()
    sets = _quantiles(axis, reading, Figures.latency_quantiles)
    return _chart("latency", "Latency", "lines", "time", "Time to the whole answer", sets, _told(values))


def _first_token(axis: Axis, reading: Reading) -> dict[str, Any]:
    values = reading.total.first_token_quantiles()
    sets = _quantiles(axis, reading, Figures.first_token_quantiles)
    title, unit = "Time to first token (streams)", "Time to the first token"
    return _chart("first-token", title, "lines", "time", unit, sets, _told(values))


def _quantiles(axis: Axis, reading: Reading, of: Callable[[Figures], list[float] | None]) -> list[Set]:
    found = [of(reading.parts[start]) if start in reading.parts else None for start in axis.starts]
    return [
        {"name": name, "values": [None if values is None else round(values[place], 1) for values in found]}
        for place, name in enumerate(QUANTILES)
    ]


def _told(values: list[float] | None) -> str:
    if values is None:
        return "Nothing was timed."
    told = ", ".join(f"{name} {milliseconds(value)}" for name, value in zip(QUANTILES, values, strict=True))
    return f"Altogether {told}."


def _tokens_chart(axis: Axis, reading: Reading) -> dict[str, Any]:
    total = reading.total
    columns: dict[str, Callable[[Figures], Value]] = {
        "input": lambda each: each.input_tokens - each.cached_tokens,
        "cached input": lambda each: each.cached_tokens,
        "output": lambda each: each.output_tokens,
    }
    sets = [{"name": name, "values": _values(axis, reading, of)} for name, of in columns.items()]
    summary = f"{count(total.input_tokens)} in, {count(total.output_tokens)} out."
    return _chart("tokens", "Tokens", "bars", "count", f"Tokens per {axis.per}", sets, summary)


def _cost(axis: Axis, reading: Reading) -> dict[str, Any]:
    """Return the chart of the cost by model: the most expensive ones, and the rest added up."""
    costs = {model: sum(parts.values()) for model, parts in reading.costs.items()}
    ranked = [model for model in sorted(costs, key=lambda model: (-costs[model], model)) if costs[model]]
    shown = ranked if len(ranked) <= SERIES else ranked[: SERIES - 1]
    sets = [{"name": model or NO_MODEL, "values": _costs(axis, reading, [model])} for model in shown]
    if len(shown) < len(ranked):
        sets.append({"name": REST, "values": _costs(axis, reading, ranked[len(shown) :])})
    summary = f"{known_money(reading.total.cost, reading.total.unpriced).capitalize()} altogether."
    return _chart("cost", "Cost by model", "bars", "money", f"US dollars per {axis.per}", sets, summary)


def _costs(axis: Axis, reading: Reading, models: Sequence[str]) -> list[float]:
    of_these = [reading.costs[model] for model in models]
    sums = [sum(parts.get(start, 0) for parts in of_these) for start in axis.starts]
    return [amount / NANO_DOLLARS for amount in sums]


def _chart(name: str, title: str, kind: str, numbers: str, unit: str, sets: list[Set], summary: str) -> dict[str, Any]:
    return {
        "id": name,
        "title": title,
        "kind": kind,
        "numbers": numbers,
        "unit": unit,
        "sets": sets,
        "summary": summary,
    }


SHOWN = 5
RECENT = 10
#: Most names that a filter suggests; others can be typed.
SUGGESTED = 200


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
class Most:
    """The accounts and keys with the highest cost in the span; without accounts if the query is for one key.

    `since` is the start of the ranking if it is before the span's: rankings cover whole quarter hours or days.
    """

    accounts: list[RankRow]
    keys: list[RankRow]
    since: datetime | None


def who_had_most(asked: DashboardQuery) -> Most:
    """Return the accounts and keys with the highest cost in the span."""
    span = asked.span
    found = usage_rankings(begin=span.begin, end=span.reach, scope=asked.scope, limit=SHOWN)
    return Most(
        accounts=[] if asked.scope.key_id else [_rank_row(asked, rank) for rank in found.accounts],
        keys=[_rank_row(asked, rank) for rank in found.keys],
        since=found.begin if found.begin < span.begin else None,
    )


def _rank_row(asked: DashboardQuery, rank: Rank) -> RankRow:
    whose = {"account": rank.account, **({"key": rank.key} if rank.key else {})}
    return RankRow(
        name="/".join(whose.values()),
        query=asked.query(**whose),
        log_query=asked.log_query(**whose),
        requests=count(rank.requests),
        failed=percent(rank.failed / rank.requests) if rank.failed else "0",
        tokens=count(rank.tokens),
        cost=known_money(rank.cost, rank.unpriced),
    )


def recent_failures(asked: DashboardQuery) -> list[RequestRecord]:
    """Return the newest failed (5xx) records of the span; they have an index."""
    return list(_failures(asked).order_by("-admitted_at", "-pk")[:RECENT])


def _failures(asked: DashboardQuery) -> QuerySet[RequestRecord]:
    chosen = Selection(asked.span.begin, asked.span.end, asked.scope)
    return chosen.records().filter(OUTCOMES[Outcome.FAILED])


def open_alerts(*, but: Collection[str] = ()) -> list[Alert]:
    """Return the newest open alerts, those on budgets last; for each budget, only its highest level.

    Alerts whose subject is in `but` are left out.
    """
    going_on = Alert.objects.filter(ended_at=None).exclude(subject__in=but).order_by("-pk")
    of_service = going_on.exclude(kind=Alert.Kind.BUDGET)[:RECENT]
    rising = sorted(
        going_on.filter(kind=Alert.Kind.BUDGET)[: RECENT * len(LEVELS)], key=lambda alert: level_of(alert.subject)
    )
    highest = {topic_of(alert.subject): alert for alert in rising}.values()
    return [*of_service, *sorted(highest, key=lambda alert: -alert.pk)][:RECENT]


def ingest_lag() -> Lag:
    """Return how many records wait for the ingester, and for how long the oldest has."""
    try:
        backlog = ingest_backlog()
    except RedisError as error:
        log.warning("backlog_unknown", cause=type(error).__name__)
        return Lag("The state store is away: the number of waiting records is unknown.", is_late=True)
    if not backlog.records:
        return Lag("Every record is counted.")
    waiting = "1 record waits" if backlog.records == 1 else f"{count(backlog.records)} records wait"
    text = f"{waiting} to be counted, the oldest for {duration(backlog.seconds)}."
    return Lag(text, is_late=backlog.seconds > LAG_SECONDS)


def suggestions() -> dict[str, list[str]]:
    """Return suggestions for the filters: names of accounts, models and endpoints."""
    used = Rollup.objects.filter(grain=Rollup.Grain.PLATFORM_DAY).order_by()
    pairs = set(used.values_list("model", "endpoint").distinct()[:SUGGESTED])
    return {
        "account": list(Account.objects.values_list("name", flat=True)[:SUGGESTED]),
        "model": sorted({model for model, _ in pairs if model}),
        "endpoint": sorted({endpoint for _, endpoint in pairs}),
    }

"""The figures of the dashboard, from the rollups or (the last hour of an account or key) from the log; and its signs.

The rollups have the platform's minutes of the last hours. Minutes of an account or key are added up from the log when
they are requested: at most MOST records of two hours, because the last hour is compared with the one before. If there
are more, the series begins later and a notice says so. The database sums the records and counts the buckets.

`signs` lists what changes when the dashboard has something new to show: one query and one reading of the streams.
Records alone would not suffice: while the ingester is down there are no new ones, and that must be shown.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db import connection
from django.db.models import Case, Count, DateTimeField, F, FloatField, IntegerField, Max, Q, QuerySet, Sum, Value, When
from django.db.models.functions import Cast, Ceil, Least, Ln, TruncMinute
from django.utils import timezone
from redis.exceptions import RedisError

from core.money import nano
from monitoring.export import Selection
from monitoring.ingester import ingest_backlog
from monitoring.models import Alert, RequestRecord, Rollup
from monitoring.records import ERRORS, OUTCOMES, TIMED
from monitoring.rollups.figures import Figures
from monitoring.rollups.histograms import BITS, BUCKETS, GAMMA
from monitoring.rollups.periods import Unit, minute_of, moment_of_minute
from monitoring.rollups.queries import Scope, costs_by_minute, usage_by_minute, usage_costs, usage_parted, usage_totals
from monitoring.rollups.store import CACHE_COLUMNS
from operations.dashboard.query import DashboardQuery, Span
from operations.deployments import failing_sign
from operations.health import LAG_SECONDS

#: Records that are read at most.
MOST = 100_000

TIMES_TOLD = Q(*(OUTCOMES[outcome] for outcome in TIMED), _connector=Q.OR)
AMOUNTS = {
    "requests": Sum("count"),
    **{str(outcome): Sum("count", filter=OUTCOMES[outcome]) for outcome in ERRORS},
    **{column: Sum("count", filter=Q(cache=cache)) for cache, column in CACHE_COLUMNS.items()},
    "unpriced": Sum("count", filter=Q(cost=None)),
    **{f"sum_{name}": Sum(name) for name in ("input_tokens", "cached_tokens", "output_tokens", "cost", "saved_cost")},
}
MONEY = ("cost", "saved_cost")


@dataclass(slots=True)
class Minutes:
    """A span's figures by minute, its costs (nano-dollars) by minute and model, and the figures `before` it.

    `before` covers the time before the span that corresponds to its complete part. Records were read from `known_from`
    on. If there were too many to read them all, `before` is None.
    """

    parts: dict[datetime, Figures]
    costs: dict[tuple[datetime, str], int]
    before: Figures | None
    known_from: datetime


def read_minutes(*, span: Span, scope: Scope) -> Minutes:
    """Read a span by minute, and the same length of time before it."""
    before = span.begin - span.length
    if scope.account_id is None and scope.key_id is None and _are_kept(before):
        shown, compared = (span.begin, span.end), (before, span.complete - span.length)
        parts, earlier = usage_by_minute(span=shown, before=compared, scope=scope)
        return Minutes(parts, costs_by_minute(span=shown, scope=scope), earlier, before)
    return _from_log(span, scope, before)


def _are_kept(begin: datetime) -> bool:
    """Return whether the rollups have all minutes since `begin`; an earlier release did not write minutes."""
    kept = Rollup.objects.filter(grain=Rollup.Grain.TOTAL_MINUTE).order_by("start").values_list("start", flat=True)
    first = kept.first()
    if first is not None and first <= minute_of(begin):
        return True
    until = None if first is None else moment_of_minute(first)
    return not Selection(begin, until).records().exists()


def _from_log(span: Span, scope: Scope, before: datetime) -> Minutes:
    known_from = _affordable(before, span.end, scope)
    selection = Selection(known_from, span.end, scope)
    # The time before is one group. It ends as long before the span's end as the span's complete part does.
    uncompared = Q(admitted_at__gte=span.complete - span.length, admitted_at__lt=span.begin)
    is_before = When(admitted_at__lt=span.begin, then=Value(before, output_field=DateTimeField()))
    minute = Case(is_before, default=TruncMinute("admitted_at"))
    records = selection.records().exclude(uncompared).order_by().annotate(minute=minute)
    parts: defaultdict[datetime, Figures] = defaultdict(Figures)
    costs: dict[tuple[datetime, str], int] = {}
    for row in records.values("minute", "model").annotate(**AMOUNTS):
        figures = _figures(row)
        parts[row["minute"]].add(figures)
        if row["minute"] != before:
            costs[row["minute"], row["model"]] = figures.cost
    for column in ("latency", "first_token"):
        for start, histogram in _histograms(records, f"{column}_ms"):
            setattr(parts[start], column, getattr(parts[start], column) + histogram)
    earlier = parts.pop(before, Figures())
    return Minutes(dict(parts), costs, earlier if known_from == before else None, known_from)


def _affordable(begin: datetime, end: datetime, scope: Scope) -> datetime:
    """Return `begin`, or the first minute that begins late enough to read no more than MOST records."""
    if usage_totals(begin=begin, end=end, scope=scope).requests <= MOST:  # there are at most as many rows as requests
        return begin
    newest = Selection(end=end, scope=replace(scope, model=None, endpoint=None)).records().order_by("-admitted_at")
    moment = newest.values_list("admitted_at", flat=True)[MOST : MOST + 1].first()
    if moment is None or moment < begin:
        return begin
    return min(end, moment.replace(second=0, microsecond=0) + timedelta(minutes=1))


def _figures(row: Mapping[str, Any]) -> Figures:
    amounts = {name.removeprefix("sum_"): row[name] or 0 for name in AMOUNTS}
    return Figures(**{name: nano(Decimal(each)) if name in MONEY else int(each) for name, each in amounts.items()})


def _histograms(records: QuerySet[RequestRecord, Any], column: str) -> Iterator[tuple[datetime, int]]:
    """Yield (minute, histogram with one bucket) of a column in ms (see monitoring.rollups.histograms)."""
    logarithm = Ln(Cast(column, FloatField())) / Value(math.log(GAMMA))
    bucket = Case(
        When(**{f"{column}__gt": 1}, then=Least(Cast(Ceil(logarithm), IntegerField()), Value(BUCKETS - 1))),
        default=Value(0),
        output_field=IntegerField(),
    )
    timed = records.filter(TIMES_TOLD, **{f"{column}__isnull": False}).annotate(bucket=bucket)
    for row in timed.values("minute", "bucket").annotate(times=Count(F("pk"))):
        yield row["minute"], row["times"] << BITS * row["bucket"]


@dataclass(slots=True)
class Reading:
    """A span's figures by the start of its parts (without empty ones), costs by model and part, and the total.

    `complete` is the total of the part of the span that is over, and `before` that of the same length of time before;
    None if unknown. Costs are in nano-dollars. `notice` is a sentence about missing data.
    """

    parts: dict[datetime, Figures] = field(default_factory=dict)
    costs: dict[str, dict[datetime, int]] = field(default_factory=dict)
    total: Figures = field(default_factory=Figures)
    complete: Figures = field(default_factory=Figures)
    before: Figures | None = None
    notice: str = ""


def read(asked: DashboardQuery) -> Reading:
    """Return the figures for a query."""
    return _from_rollups(asked, asked.span.unit) if asked.span.unit else _of_minutes(asked)


def _from_rollups(asked: DashboardQuery, unit: Unit) -> Reading:
    span, scope = asked.span, asked.scope
    apart = span.complete, span.end
    parts, unfinished = usage_parted(begin=span.begin, end=span.last_end, unit=unit, apart=apart, scope=scope)
    reading = _divided(parts, usage_costs(begin=span.begin, end=span.last_end, unit=unit, scope=scope))
    if span.complete > span.begin:
        back = span.length
        reading.complete = reading.total - unfinished
        reading.before = usage_totals(begin=span.begin - back, end=span.complete - back, scope=scope)
    return reading


def _of_minutes(asked: DashboardQuery) -> Reading:
    span = asked.span
    found = read_minutes(span=span, scope=asked.scope)
    reading = _divided(found.parts, found.costs)
    reading.complete = Figures.sum_of(figures for start, figures in found.parts.items() if start < span.complete)
    reading.before = found.before
    if found.known_from > span.begin:
        reading.notice = (
            f"There were too many requests to read the whole hour by the minute: these are the requests since "
            f"{found.known_from:%H:%M} UTC. Ask for 24 h to see all of it by the hour."
        )
    return reading


def _divided(parts: dict[datetime, Figures], costs: Mapping[tuple[datetime, str], int]) -> Reading:
    by_model: defaultdict[str, dict[datetime, int]] = defaultdict(dict)
    for (start, model), cost in costs.items():
        by_model[model][start] = cost
    return Reading(parts=parts, costs=dict(by_model), total=Figures.sum_of(parts.values()))


def open_alerts_sign() -> tuple[QuerySet[Any, Any], str]:
    """Return the open alerts and the column whose maximum changes with them, for the dashboard's mark."""
    return Alert.objects.filter(ended_at=None), "pk"


def signs() -> list[str]:
    """List strings that change when there is something new: the newest record's id (`None` without records) first.

    Records with a time of admission in the future are ignored (a clock was ahead), so they don't hide newer ones.
    """
    known = RequestRecord.objects.filter(admitted_at__lte=timezone.now())
    newest = known.order_by("-admitted_at", "-pk").values("pk")[:1]
    return [*_values(newest, *_number_and_latest(*open_alerts_sign())), failing_sign(), _backlog_sign()]


def _number_and_latest(rows: QuerySet[Any, Any], column: str) -> Iterator[QuerySet[Any, Any]]:
    together = rows.order_by().annotate(together=Value(1)).values("together")
    for aggregate in (Count("pk"), Max(column)):
        yield together.annotate(sign=aggregate).values("sign")


def _values(*queries: QuerySet[Any, Any]) -> list[str]:
    """Return the single value that each query selects, in one statement."""
    compiled = [query.query.sql_with_params() for query in queries]
    selected = ", ".join(f"({sql})" for sql, _ in compiled)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {selected}", [value for _, values in compiled for value in values])
        return [str(value) for value in cursor.fetchone()]


def _backlog_sign() -> str:
    """Return how many records wait, and for how long in steps of LAG_SECONDS; `away` without Redis."""
    try:
        backlog = ingest_backlog()
    except RedisError:
        return "away"
    return f"{backlog.records}.{backlog.seconds // LAG_SECONDS:.0f}"

"""The figures of the dashboard, from the rollups or (the last hour of an account or key) from the log; and its signs.

The rollups have the platform's minutes of the last hours. Minutes of an account or key are added up from the log when
they are requested: at most MOST records of two hours, because the last hour is compared with the one before. If there
are more, the series begins later and a notice says so. The database sums the records.

`signs` lists what changes when the dashboard has something new to show: one query and one reading of the streams.
Records alone would not suffice: while the ingester is down there are no new ones, and that must be shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import Count, Max, QuerySet, Value
from django.utils import timezone
from redis.exceptions import RedisError

from monitoring.export import Selection
from monitoring.ingester import ingest_backlog
from monitoring.models import Alert, RequestRecord
from monitoring.records import ERRORS
from monitoring.rollups.figures import Figures
from monitoring.rollups.log import log_sums
from monitoring.rollups.periods import Unit, datetime_of
from monitoring.rollups.queries import Scope, TooOld, usage_by_minute, usage_series, usage_totals
from monitoring.rollups.store import MEASURES
from operations.dashboard.query import DashboardQuery, Span
from operations.deployments import failing_sign
from operations.health import LAG_SECONDS

#: Records that are read at most.
MOST = 100_000

#: The figures of a part of the span, by its start and model.
Parts = Iterable[tuple[datetime, str, Figures]]


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
    span, scope = asked.span, asked.scope
    if span.unit is None:
        return _of_minutes(span, scope)
    points = usage_series(begin=span.begin, end=span.last_end, scope=scope, unit=span.unit, by="model")
    reading = _divided((point.start, point.group or "", point.figures) for point in points if point.start)
    if span.complete > span.begin:
        reading.complete = (
            _sum_until(reading, span.complete)
            if span.unit is Unit.HOUR
            else usage_totals(begin=span.begin, end=span.complete, scope=scope)
        )
        try:
            reading.before = usage_totals(begin=span.begin - span.length, end=span.complete - span.length, scope=scope)
        except TooOld:
            reading.before = None
    return reading


def _of_minutes(span: Span, scope: Scope) -> Reading:
    """Return a span by minute, and the same length of time before it."""
    before = span.begin - span.length
    if scope.account_id is None and scope.key_id is None:
        points = usage_by_minute(begin=before, end=span.end, scope=scope, by="model")
        found = [(point.start, point.group or "", point.figures) for point in points if point.start]
        known_from = before
    else:
        known_from = _affordable(before, span.end, scope)
        found = _from_log(known_from, span.end, scope)
    reading = _divided(each for each in found if each[0] >= span.begin)
    reading.complete = _sum_until(reading, span.complete)
    if known_from == before:
        compared = (figures for start, _, figures in found if start < span.complete - span.length)
        reading.before = Figures.sum_of(compared)
    if known_from > span.begin:
        reading.notice = (
            f"There were too many requests to read the whole hour by the minute: these are the requests since "
            f"{known_from:%H:%M} UTC. Ask for 24 h to see all of it by the hour."
        )
    return reading


def _from_log(begin: datetime, end: datetime, scope: Scope) -> list[tuple[datetime, str, Figures]]:
    found = []
    for (minute, model, outcome), tally in log_sums(Selection(begin, end, scope).records(), 1, "model"):
        figures = Figures(**dict(zip(MEASURES, tally, strict=True)))
        if outcome in ERRORS:
            setattr(figures, outcome, figures.requests)
        found.append((datetime_of(minute), model, figures))
    return found


def _affordable(begin: datetime, end: datetime, scope: Scope) -> datetime:
    """Return `begin`, or the first minute that begins late enough to read no more than MOST records."""
    if usage_totals(begin=begin, end=end, scope=scope).requests <= MOST:  # there are at most as many rows as requests
        return begin
    newest = Selection(end=end, scope=replace(scope, model=None, endpoint=None)).records().order_by("-admitted_at")
    moment = newest.values_list("admitted_at", flat=True)[MOST : MOST + 1].first()
    if moment is None or moment < begin:
        return begin
    return min(end, moment.replace(second=0, microsecond=0) + timedelta(minutes=1))


def _sum_until(reading: Reading, end: datetime) -> Figures:
    return Figures.sum_of(figures for start, figures in reading.parts.items() if start < end)


def _divided(parts: Parts) -> Reading:
    reading = Reading(parts=defaultdict(Figures))
    for start, model, figures in parts:
        reading.parts[start].add(figures)
        if figures.cost:
            costs = reading.costs.setdefault(model, {})
            costs[start] = costs.get(start, 0) + figures.cost
    reading.parts = dict(reading.parts)
    reading.total = Figures.sum_of(reading.parts.values())
    return reading


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

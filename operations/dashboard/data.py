"""The figures of the dashboard, from the rollups or (the last hour of an account or key) from the log.

The rollups have the platform's minutes of the last hours. Minutes of an account or key are added up from the log when
they are requested: at most MOST records of two hours, because the last hour is compared with the one before. If there
are more, the series begins later and a notice says so. The database sums the records.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

from django.utils import timezone

from core.ttl_cache import TtlCache
from monitoring.export import Selection
from monitoring.models import ERRORS, RequestRecord
from monitoring.rollups.figures import Figures
from monitoring.rollups.log import log_sums
from monitoring.rollups.periods import Unit, datetime_of
from monitoring.rollups.queries import Scope, TooOld, usage_by_minute, usage_series, usage_totals
from monitoring.rollups.store import MEASURES
from monitoring.selectors import has_many_keys
from operations.dashboard.query import DashboardQuery, Span

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
    """Return the figures for a query; with many keys, those of several days may be a minute old."""
    if asked.span.length > LONG and has_many_keys():
        return recent_readings.get((asked.span, asked.scope))
    return _read((asked.span, asked.scope))


def _read(asked: tuple[Span, Scope]) -> Reading:
    span, scope = asked
    if span.unit is None:
        return _of_minutes(span, scope)
    series = partial(usage_series, begin=span.begin, end=span.last_end, scope=scope, unit=span.unit)
    models = series(by="model", timed=False)
    reading = _divided((point.start, point.group or "", point.figures) for point in models if point.start)
    reading.parts = {point.start: point.figures for point in series() if point.start}
    reading.total = Figures.sum_of(reading.parts.values())
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


#: The script of the page asks once a minute for spans that are longer.
LONG = timedelta(days=2)
recent_readings: TtlCache[tuple[Span, Scope], Reading] = TtlCache(_read, max_age=60, from_end=True, size=20)


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


def newest_record() -> UUID | None:
    """Return the id of the newest record; one with a time of admission in the future (a clock was ahead) hides none."""
    known = RequestRecord.objects.filter(admitted_at__lte=timezone.now())
    return known.order_by("-admitted_at", "-pk").values_list("pk", flat=True).first()

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

from core.ttl_cache import TtlCache
from monitoring.export import records_within
from monitoring.models import ERRORS
from monitoring.rollups.figures import Figures
from monitoring.rollups.log import log_sums
from monitoring.rollups.periods import MINUTE, Unit, datetime_of
from monitoring.rollups.queries import Scope, TooOld, usage_by_minute, usage_series, usage_totals
from monitoring.rollups.store import MEASURES
from monitoring.selectors import has_many_keys
from operations.dashboard.query import DashboardQuery, Span

#: Records that are read at most.
MOST = 100_000


@dataclass(slots=True)
class Reading:
    """A span's figures by the start of its parts (without empty ones), costs by model and part, and the total.

    `complete` is the total of the part of the span that is over, and `before` that of the same length of time before;
    None if unknown. Costs are in nano-dollars. `notice` is a sentence about missing data.
    """

    parts: dict[datetime, Figures] = field(default_factory=lambda: defaultdict(Figures))
    costs: dict[str, dict[datetime, int]] = field(default_factory=dict)
    total: Figures = field(default_factory=Figures)
    complete: Figures = field(default_factory=Figures)
    before: Figures | None = None
    notice: str = ""

    @classmethod
    def of(cls, by_model: Iterable[tuple[datetime, str, Figures]], span: Span) -> Reading:
        """Add up the figures of models by part."""
        reading = cls()
        for start, model, figures in by_model:
            reading.parts[start].add(figures)
            if figures.cost:
                costs = reading.costs.setdefault(model, {})
                costs[start] = costs.get(start, 0) + figures.cost
        reading.sum_up(dict(reading.parts), span)
        return reading

    def sum_up(self, parts: dict[datetime, Figures], span: Span) -> None:
        """Set the figures of the parts, and their sums."""
        self.parts, self.total = parts, Figures.sum_of(parts.values())
        self.complete = Figures.sum_of(each for start, each in parts.items() if start < span.complete)


def read(asked: DashboardQuery) -> Reading:
    """Return the figures for a query; with many keys, those of several days may be a minute old."""
    if asked.span.length > LONG and has_many_keys():
        return recent_readings.get((asked.span, asked.scope))
    return _read((asked.span, asked.scope))


def _read(asked: tuple[Span, Scope]) -> Reading:
    span, scope = asked
    if span.unit is None:
        return _by_minute(span, scope)
    end = span.reach if span.unit is not Unit.HOUR else span.end  # a row of a day is read whole, also if it is not over
    series = partial(usage_series, begin=span.begin, end=end, scope=scope, unit=span.unit)
    models = series(by="model", timed=False)
    reading = Reading.of(((point.start, point.group or "", point.figures) for point in models if point.start), span)
    reading.sum_up({point.start: point.figures for point in series() if point.start}, span)
    if span.complete > span.begin:
        if span.unit is not Unit.HOUR:
            reading.complete = usage_totals(begin=span.begin, end=span.complete, scope=scope)
        try:
            reading.before = usage_totals(begin=span.before[0], end=span.before[1], scope=scope)
        except TooOld:
            reading.before = None
    return reading


#: The script of the page asks once a minute for spans that are longer.
LONG = timedelta(days=2)
recent_readings: TtlCache[tuple[Span, Scope], Reading] = TtlCache(_read, max_age=60, from_end=True, size=20)


def _by_minute(span: Span, scope: Scope) -> Reading:
    """Return a span by minute, and the same length of time before it."""
    before, complete_before = span.before
    known_from = before
    found: list[tuple[datetime, str, Figures]] = []
    if scope.account_id is None and scope.key_id is None:
        points = usage_by_minute(begin=before, end=span.end, scope=scope, by="model")
        found += [(point.start, point.group or "", point.figures) for point in points if point.start]
    else:
        known_from = _affordable(before, span.end, scope)
        records = records_within(known_from, span.end, scope)
        for (minute, model, outcome), tally in log_sums(records, 1, "model"):
            figures = Figures(**dict(zip(MEASURES, tally, strict=True)))
            if outcome in ERRORS:
                setattr(figures, outcome, figures.requests)
            found.append((datetime_of(minute), model, figures))
    reading = Reading.of((each for each in found if each[0] >= span.begin), span)
    if known_from == before:
        compared = (figures for start, _, figures in found if start < complete_before)
        reading.before = Figures.sum_of(compared)
    if known_from > span.begin:
        reading.notice = (
            f"There were too many requests to read the whole hour by the minute: these are the requests since "
            f"{known_from:%H:%M} UTC. Ask for 24 h to see all of it by the hour."
        )
    return reading


def _affordable(begin: datetime, end: datetime, scope: Scope) -> datetime:
    """Return `begin`, or the first minute that begins late enough to read no more than MOST records."""
    if usage_totals(begin=begin, end=end, scope=scope).requests <= MOST:  # there are at most as many rows as requests
        return begin
    newest = records_within(end=end, scope=replace(scope, model=None, endpoint=None)).order_by("-admitted_at")
    at = newest.values_list("admitted_at", flat=True)[MOST : MOST + 1].first()
    if at is None or at < begin:
        return begin
    return min(end, at.replace(second=0, microsecond=0) + MINUTE)

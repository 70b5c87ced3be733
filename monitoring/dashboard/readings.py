"""The figures that the dashboard shows, of rollups or (for the last hour) of the log, in one shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from monitoring.dashboard.asked import Asked, Span
from monitoring.dashboard.minutes import read_minutes
from monitoring.rollups.calendar import Unit
from monitoring.rollups.figures import Figures
from monitoring.rollups.selectors import Point, Scope, usage_series, usage_totals, usage_until_now


@dataclass(slots=True)
class Reading:
    """A span's figures by where its parts begin (gaps where there was nothing), costs by model and part, and the total.

    `complete` is what of it is over, and `before` as much time before that, None where it is not known. `notice` is a
    sentence about what is missing.
    """

    parts: dict[datetime, Figures] = field(default_factory=dict)
    costs: dict[str, dict[datetime, int]] = field(default_factory=dict)
    total: Figures = field(default_factory=Figures)
    complete: Figures = field(default_factory=Figures)
    before: Figures | None = None
    notice: str = ""


def read(asked: Asked) -> Reading:
    """Get the figures."""
    return _from_rollups(asked) if asked.span.unit else _from_log(asked)


def _from_rollups(asked: Asked) -> Reading:
    span, scope = asked.span, asked.scope
    assert span.unit  # noqa: S101  # for mypy: minutes are read from the log
    points, unfinished = _points(span, scope, span.unit)
    reading = _divided((point.start, point.group or "", point.figures) for point in points if point.start)
    if span.complete > span.begin:
        back = span.length
        reading.complete = reading.total - unfinished
        reading.before = usage_totals(begin=span.begin - back, end=span.complete - back, scope=scope)
    return reading


def _points(span: Span, scope: Scope, unit: Unit) -> tuple[list[Point], Figures]:
    """Read the series by model, and what of it came in the hour that is not over."""
    if span.is_going_on:
        return usage_until_now(begin=span.begin, complete=span.complete, scope=scope, unit=unit, by="model")
    return usage_series(begin=span.begin, end=span.end, scope=scope, unit=unit, by="model"), Figures()


def _from_log(asked: Asked) -> Reading:
    span = asked.span
    minutes, known_from = read_minutes(span=span, scope=asked.scope)
    rows = [(minute, model, figures) for (minute, model), figures in minutes.items()]
    reading = _divided(row for row in rows if row[0] >= span.begin)
    reading.complete = _sum(figures for minute, _, figures in rows if span.begin <= minute < span.complete)
    if known_from == span.begin - span.length:
        reading.before = _sum(figures for minute, _, figures in rows if minute < span.begin)
    elif known_from > span.begin:
        reading.notice = (
            f"There were too many requests to read the whole hour by the minute: this is what came since "
            f"{known_from:%H:%M} UTC. Ask for 24 h to see all of it by the hour."
        )
    return reading


def _divided(rows: Iterable[tuple[datetime, str, Figures]]) -> Reading:
    reading = Reading()
    costs: defaultdict[str, defaultdict[datetime, int]] = defaultdict(lambda: defaultdict(int))
    for start, model, figures in rows:
        part = reading.parts.setdefault(start, Figures())
        part += figures
        costs[model][start] += figures.cost
    reading.total = _sum(reading.parts.values())
    reading.costs = {model: dict(parts) for model, parts in costs.items()}
    return reading


def _sum(many: Iterable[Figures]) -> Figures:
    total = Figures()
    for figures in many:
        total += figures
    return total

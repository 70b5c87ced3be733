"""The figures that the dashboard shows, of rollups or (for the last hour) of the log, in one shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from monitoring.dashboard.asked import Asked
from monitoring.dashboard.minutes import read_minutes
from monitoring.rollups.calendar import Unit
from monitoring.rollups.figures import Figures
from monitoring.rollups.selectors import usage_costs, usage_parted, usage_totals


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
    return _from_rollups(asked, asked.span.unit) if asked.span.unit else _of_minutes(asked)


def _from_rollups(asked: Asked, unit: Unit) -> Reading:
    span, scope = asked.span, asked.scope
    apart = span.complete, span.end
    parts, unfinished = usage_parted(begin=span.begin, end=span.last_end, unit=unit, apart=apart, scope=scope)
    reading = _divided(parts, usage_costs(begin=span.begin, end=span.last_end, unit=unit, scope=scope))
    if span.complete > span.begin:
        back = span.length
        reading.complete = reading.total - unfinished
        reading.before = usage_totals(begin=span.begin - back, end=span.complete - back, scope=scope)
    return reading


def _of_minutes(asked: Asked) -> Reading:
    span = asked.span
    found = read_minutes(span=span, scope=asked.scope)
    reading = _divided(found.parts, found.costs)
    reading.complete = Figures.sum_of(figures for start, figures in found.parts.items() if start < span.complete)
    reading.before = found.before
    if found.known_from > span.begin:
        reading.notice = (
            f"There were too many requests to read the whole hour by the minute: this is what came since "
            f"{found.known_from:%H:%M} UTC. Ask for 24 h to see all of it by the hour."
        )
    return reading


def _divided(parts: dict[datetime, Figures], costs: Mapping[tuple[datetime, str], int]) -> Reading:
    by_model: defaultdict[str, dict[datetime, int]] = defaultdict(dict)
    for (start, model), cost in costs.items():
        by_model[model][start] = cost
    return Reading(parts=parts, costs=dict(by_model), total=Figures.sum_of(parts.values()))

"""The charts as the page's script draws them (static/site/charts.js): plain values by the parts of the span."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from accounts.refusals import NANO_DOLLARS
from monitoring.dashboard.asked import Asked
from monitoring.dashboard.formats import count, known_money, milliseconds
from monitoring.dashboard.readings import Reading
from monitoring.rollups.calendar import Unit
from monitoring.rollups.figures import QUANTILES, Figures

#: Series that a chart tells apart; what is beyond is added up.
SERIES = 6
REST = "others"
NO_MODEL = "no model"
#: Of a few requests, p95 and p99 are the same one.
OVERLAP = "Where few requests were timed, the lines of p95 and p99 lie on one another."

Value = float | int | None
Set = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Axis:
    """The parts of the span: where each begins, what is written below a chart, and what a tooltip and a table say."""

    starts: Sequence[datetime]
    labels: Sequence[str]
    names: Sequence[str]
    per: str

    @property
    def shared(self) -> dict[str, Any]:
        """Return what every chart has of it."""
        return {"labels": self.labels, "names": self.names, "time": f"{self.per.capitalize()} (UTC)"}


def charts(asked: Asked, reading: Reading) -> list[dict[str, Any]]:
    """Describe the charts, in their order."""
    axis = _axis(asked)
    made = (_traffic, _latency, _first_token, _tokens, _cost)
    found = [{**axis.shared, **each(axis, reading)} for each in made]
    return [{**each, **({"note": OVERLAP} if each["kind"] == "lines" else {})} for each in found]


def _axis(asked: Asked) -> Axis:
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
    """Read a value of each part; `absent` where nothing was asked: no requests are 0 requests, but no latency."""
    return [of(reading.parts[start]) if start in reading.parts else absent for start in axis.starts]


def _traffic(axis: Axis, reading: Reading) -> dict[str, Any]:
    total = reading.total
    # The looks are those of the account page: one thing has one colour everywhere.
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


def _tokens(axis: Axis, reading: Reading) -> dict[str, Any]:
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
    """Split the cost by model: the dearest ones, the rest added up."""
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

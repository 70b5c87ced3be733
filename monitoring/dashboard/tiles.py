"""The first row: what happened altogether, how that differs from the time before, and where it was counted from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from monitoring.dashboard.asked import Asked
from monitoring.dashboard.formats import UNKNOWN, count, exact_money, known_money, milliseconds, money, percent
from monitoring.dashboard.readings import Reading
from monitoring.rollups.figures import Figures

P95 = (0.95,)
#: A change below this is none: figures are told to the whole percent.
LEAST_CHANGE = 0.005


@dataclass(frozen=True, slots=True)
class Change:
    """How a figure differs from the time before: `text` for reading, `tone` (better, worse or even), `told` in full."""

    text: str
    tone: str
    told: str


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure: rounded, exact, more about it, its change, and the query of the log that it was counted from."""

    name: str
    value: str
    exact: str
    more: str
    change: Change
    query: str


@dataclass(frozen=True, slots=True)
class Measure:
    """What a tile measures: `of` gives None where there is nothing to tell.

    `direction` is 1 where more is better, -1 where it is worse, 0 where it is neither. A share changes by points.
    """

    of: Callable[[Figures], float | None]
    write: Callable[[float], str]
    direction: int = 0
    is_share: bool = False


def tiles(asked: Asked, reading: Reading) -> list[Tile]:
    """Make the row."""
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
    """Compare what is over of the span with as much time before."""
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

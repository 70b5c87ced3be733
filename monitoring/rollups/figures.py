"""Figures: the sums of some requests, and the quantiles of their histograms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from core.formats import cents, exact_money, known_money
from core.money import dollars
from monitoring.rollups.histograms import quantiles

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
ALL_QUANTILES = tuple(QUANTILES.values())
ANSWER_DECIMALS = 1
#: A page shows hundreds of histograms, and most are those of the last time.
_quantiles = lru_cache(maxsize=2000)(quantiles)


@dataclass(slots=True)
class Figures:
    """The sums of some requests. Figures can be added: those of the parts make those of the whole (`add`, `sum_of`).

    `requests` counts all; `invalid` (4xx other than 429), `limited` (429) and `failed` (5xx) are parts of it. Money is
    in nano-dollars; the `unpriced` requests, whose cost is unknown, add 0 to it. `latency` and `first_token` are
    histograms (ms) of the requests that were answered or failed; they don't include refusals.
    """

    requests: int = 0
    invalid: int = 0
    limited: int = 0
    failed: int = 0
    hits: int = 0
    coalesced: int = 0
    misses: int = 0
    bypassed: int = 0
    replayed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost: int = 0
    saved_cost: int = 0
    unpriced: int = 0
    latency: int = 0
    first_token: int = 0

    def add(self, other: Figures) -> None:
        """Add other figures to these."""
        # Written out because a loop over the names takes three times as long, and a page adds up thousands of figures.
        self.requests += other.requests
        self.invalid += other.invalid
        self.limited += other.limited
        self.failed += other.failed
        self.hits += other.hits
        self.coalesced += other.coalesced
        self.misses += other.misses
        self.bypassed += other.bypassed
        self.replayed += other.replayed
        self.input_tokens += other.input_tokens
        self.cached_tokens += other.cached_tokens
        self.output_tokens += other.output_tokens
        self.cache_write_tokens += other.cache_write_tokens
        self.reasoning_tokens += other.reasoning_tokens
        self.cost += other.cost
        self.saved_cost += other.saved_cost
        self.unpriced += other.unpriced
        self.latency += other.latency
        self.first_token += other.first_token

    @classmethod
    def sum_of(cls, many: Iterable[Figures]) -> Figures:
        """Return the sum of many figures."""
        total = cls()
        for each in many:
            total.add(each)
        return total

    @property
    def cache_hits(self) -> int:
        """Return the number of answers without an upstream call of their own: cached and coalesced."""
        return self.hits + self.coalesced

    @property
    def cache_lookups(self) -> int:
        """Return the number of requests that the cache was asked for: hits and misses."""
        return self.cache_hits + self.misses

    @property
    def cache_hit_rate(self) -> float:
        """Return the share of hits in hits and misses, with three decimals; 0 if there were neither."""
        return round(self.cache_hits / self.cache_lookups, 3) if self.cache_lookups else 0.0

    @property
    def answered(self) -> int:
        """Return the number of requests that did not end with an error."""
        return self.requests - self.invalid - self.limited - self.failed

    @property
    def tokens(self) -> int:
        """Return input and output tokens."""
        return self.input_tokens + self.output_tokens

    @property
    def is_cost_unknown(self) -> bool:
        """Return whether no part of the cost is known. If a part is known, the cost is at least that."""
        return bool(self.unpriced) and not self.cost

    @property
    def shown_cost(self) -> str:
        """Format the cost: `$1.20`, `at least $1.20`, or `unknown`."""
        return known_money(self.cost, self.unpriced)

    @property
    def exact_cost(self) -> str:
        """Format the cost with all its decimals."""
        return known_money(self.cost, self.unpriced, exact_money)

    @property
    def cents(self) -> str:
        """Format the cost for a column of amounts."""
        return known_money(self.cost, self.unpriced, cents)

    def latency_quantiles(self, wanted: tuple[float, ...] = ALL_QUANTILES) -> list[float] | None:
        """Return quantiles of the latency in ms, within 5 %; None if nothing was timed."""
        return _quantiles(self.latency, wanted)

    def first_token_quantiles(self, wanted: tuple[float, ...] = ALL_QUANTILES) -> list[float] | None:
        """Return quantiles of the time to a stream's first token in ms, within 5 %; None without streams."""
        return _quantiles(self.first_token, wanted)

    def as_answer(self) -> dict[str, Any]:
        """Return the figures as /usage, pages and exports show them (money as a string in US dollars)."""
        return {
            "requests": self.requests,
            "errors": {"invalid": self.invalid, "limited": self.limited, "failed": self.failed},
            "cache_hits": self.cache_hits,
            "cache_misses": self.misses,
            "cache_hit_rate": self.cache_hit_rate,
            "input_tokens": self.input_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.output_tokens,
            "cache_write_tokens": self.cache_write_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "cost": None if self.is_cost_unknown else dollars(self.cost),
            "unpriced_requests": self.unpriced,
            "saved_cost": dollars(self.saved_cost),
            "latency_ms": _named(self.latency_quantiles()),
            "first_token_ms": _named(self.first_token_quantiles()),
        }


def _named(values: list[float] | None) -> dict[str, float] | None:
    if values is None:
        return None
    return {name: round(value, ANSWER_DECIMALS) for name, value in zip(QUANTILES, values, strict=True)}

"""What a deployment's tokens cost, in nano-dollars, and the highest that a call may cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from math import ceil
from typing import Any, NamedTuple

from accounts.limits.types import MILLION
from core.money import nano
from inference.models import Price
from inference.usage import Usage

#: Service tiers that may have prices of their own (OpenAI's names), and the prices that they change.
SERVICE_TIERS = ("flex", "priority")
TOKEN_PRICES = ("input", "cached_input", "output", "cache_write", "cache_write_1h", "reasoning")


class Ceiling(NamedTuple):
    """The highest prices of a call: of a million input and output tokens, of the request, and of a web search."""

    input: int
    output: int
    request: int
    search: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Nano-dollars per million tokens, per request, and per web search (None: it has no price, and is refused).

    `steps` are the rates of longer prompts, by the number of tokens above which they hold, the highest first. The whole
    prompt decides, and a step holds for every part of the call.
    """

    input: int = 0
    cached_input: int = 0
    output: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    reasoning: int = 0
    request: int = 0
    search: int | None = None
    steps: tuple[tuple[int, Rates], ...] = ()
    #: The rates of other service tiers, by their names.
    tiers: tuple[tuple[str, Rates], ...] = ()

    @classmethod
    def of(cls, prices: Iterable[Price]) -> Rates | None:
        """Return the rates of prices in force; None without one for all prompts. Its factors of tiers hold for all."""
        rows = {price.above_tokens: price for price in prices}
        row = rows.pop(0, None)
        if row is None:
            return None
        steps = sorted(((above, cls._of_row(price, row)) for above, price in rows.items()), reverse=True)
        base = replace(cls._of_row(row, row), steps=tuple(steps))
        factors = ((name, getattr(row, f"{name}_factor")) for name in SERVICE_TIERS)
        return replace(base, tiers=tuple((name, base._times(each)) for name, each in factors if each is not None))

    @classmethod
    def _of_row(cls, price: Price, base: Price) -> Rates:
        """Return the rates of one row; `base` is the one for all prompts.

        A part without a price of its own costs what its whole does, a search what it does in shorter prompts.
        """
        whole, written = nano(price.input_per_million), nano(price.output_per_million)
        search = base.per_search if price.per_search is None else price.per_search
        cache_write = _nano_or(price.cache_write_per_million, whole)
        return cls(
            whole,
            _nano_or(price.cached_input_per_million, whole),
            written,
            cache_write,
            _nano_or(price.cache_write_1h_per_million, cache_write),
            _nano_or(price.reasoning_per_million, written),
            _nano_or(price.per_request, 0),
            None if search is None else nano(search),
        )

    def _times(self, factor: Decimal) -> Rates:
        """Return these rates with every price of tokens multiplied, rounded up."""
        prices = {name: ceil(getattr(self, name) * factor) for name in TOKEN_PRICES}
        return replace(self, **prices, steps=tuple((above, rates._times(factor)) for above, rates in self.steps))

    def in_tier(self, name: Any) -> Rates:
        """Return the rates of a service tier; these if it has none of its own."""
        if not self.tiers:
            return self
        return next((rates for tier, rates in self.tiers if tier == name), self)

    def for_prompt(self, tokens: int) -> Rates:
        """Return the rates of a prompt with this number of tokens."""
        if not self.steps:
            return self
        return next((rates for above, rates in self.steps if tokens > above), self)

    def cost(self, usage: Usage) -> int:
        """Return the cost of a call in nano-dollars, rounded up once."""
        rates = self.for_prompt(usage.input_tokens)
        written_1h, reasoning = usage.cache_write_1h_tokens, usage.reasoning_tokens
        total = (
            (usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens) * rates.input
            + usage.cached_tokens * rates.cached_input
            + (usage.cache_write_tokens - written_1h) * rates.cache_write
            + written_1h * rates.cache_write_1h
            + (usage.output_tokens - reasoning) * rates.output
            + reasoning * rates.reasoning
        )
        return -(-total // MILLION) + rates.request + usage.web_searches * (rates.search or 0)

    def ceiling(self, prompt_tokens: int, tier: Any = None) -> Ceiling:
        """Return the highest prices of calls whose prompts have at most this number of tokens.

        A provider may serve a call in the tier that it asks for, or in the ordinary one; if it asks for none, in any.
        """
        if not self.tiers and not self.steps:
            return self._highest
        tiers = [self, *(rates for name, rates in self.tiers if tier in (name, None, "auto"))]
        steps = [rates for each in tiers for above, rates in each.steps if prompt_tokens > above]
        return Ceiling(*map(max, zip(*(each._highest for each in (*tiers, *steps)), strict=True)))

    @property
    def _highest(self) -> Ceiling:
        """Return the highest prices of these rates alone."""
        read = max(self.input, self.cached_input, self.cache_write, self.cache_write_1h)
        return Ceiling(read, max(self.output, self.reasoning), self.request, self.search or 0)


def _nano_or(price: Decimal | None, otherwise: int) -> int:
    return otherwise if price is None else nano(price)

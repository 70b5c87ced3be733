"""What looking at a ledger tells: by how much it is too high, or too low."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from accounts.limits.bounds import Amount
from accounts.limits.ledgers import Ledger
from accounts.refusals import dollars
from monitoring.ledger_check.holders import Holder


class Span(NamedTuple):
    """By how much an amount is too high: at least `low`, at most `high`. Negative where it is too low."""

    low: int
    high: int

    @property
    def is_wrong(self) -> bool:
        """Say whether the amount can't be right."""
        return self.low > 0 or self.high < 0

    def narrowed(self, by: Span) -> Span:
        """Take in what a later look tells: both hold, unless what was wrong has changed since."""
        low, high = max(self.low, by.low), min(self.high, by.high)
        return Span(low, high) if low <= high else by

    def lacking(self, most: int) -> Span:
        """Forgive that the amount is too low, by so much at most."""
        return Span(min(0, self.low + most), min(0, self.high + most)) if self.high < 0 else self


class Excess(NamedTuple):
    """By how much a ledger is too high."""

    tokens: Span
    cost: Span
    reserved_tokens: Span
    reserved_cost: Span

    @property
    def is_wrong(self) -> bool:
        """Say whether anything of it can't be right."""
        return any(span.is_wrong for span in self)

    @property
    def is_nothing(self) -> bool:
        """Say whether all of it is right for certain."""
        return all(span == (0, 0) for span in self)

    @property
    def is_certain(self) -> bool:
        """Say whether it is known exactly."""
        return all(span.low == span.high for span in self)

    def narrowed(self, by: Excess) -> Excess:
        """Take in what a later look tells."""
        return Excess(*(mine.narrowed(its) for mine, its in zip(self, by, strict=True)))

    def lacking(self, most: Amount) -> Excess:
        """Forgive that it was charged too little, by so much at most."""
        return self._replace(tokens=self.tokens.lacking(most.tokens), cost=self.cost.lacking(most.cost))

    @classmethod
    def seen(cls, before: Ledger, after: Ledger, found: Amount) -> Excess:
        """Compare what a ledger held before and after the records were found."""
        tokens = sorted((before.settled.tokens - found.tokens, after.settled.tokens - found.tokens))
        cost = sorted((before.settled.cost - found.cost, after.settled.cost - found.cost))
        reserved = after.reserved - after.held
        return cls(Span(*tokens), Span(*cost), *(Span(each, each) for each in (reserved.tokens, reserved.cost)))


@dataclass(frozen=True, slots=True)
class LedgerDifference:
    """A ledger that is not what it should be in a month (YYYYMM)."""

    holder: Holder
    month: int
    excess: Excess

    def __str__(self) -> str:
        excess = self.excess
        told = [
            *_told("was charged", excess.tokens, excess.cost),
            *_told("has reserved", excess.reserved_tokens, excess.reserved_cost),
        ]
        return f"ledger of {self.month}: {self.holder.name} ({self.holder.subject.name}) {', '.join(told)}"


def _told(what: str, tokens: Span, cost: Span) -> list[str]:
    told = []
    for span, is_money in ((tokens, False), (cost, True)):
        if span.is_wrong:
            amount = span.low if span.low > 0 else -span.high
            text = f"${dollars(amount)}" if is_money else f"{amount:,} tokens"
            least = "" if span.low == span.high else "at least "
            told.append(f"{what} {least}{text} too {'much' if span.low > 0 else 'little'}")
    return told

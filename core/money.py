"""Amounts of money: integer nano-dollars in code, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal

NANO_DOLLARS = 1_000_000_000


def nano(amount: Decimal) -> int:
    """Return US dollars as whole nano-dollars."""
    return int((Decimal(amount) * NANO_DOLLARS).to_integral_value())


def dollars(nano: int) -> str:
    """Write nano-dollars as US dollars with nine decimals, without going through a float."""
    return f"{nano // NANO_DOLLARS}.{nano % NANO_DOLLARS:09d}"


def nano_dollars(dollars: Decimal | None) -> int | None:
    """Convert US dollars to integer nano-dollars; None stays None."""
    return None if dollars is None else nano(dollars)


COMPACT = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


def count(number: int) -> str:
    """Write a count as 1,204 or 1.23 M."""
    if abs(number) < 10_000:
        return f"{number:,}"
    # What rounds up to the next letter takes it: 999,999 is 1 M.
    rounded = float(f"{number:.2e}")
    size, letter = next(each for each in COMPACT if abs(rounded) >= each[0])
    return f"{rounded / size:.3g} {letter}"


def money(nano_dollars: int) -> str:
    """Write nano-dollars as $12.34, less than ten cents with two significant digits."""
    dollars = nano_dollars / NANO_DOLLARS
    if dollars >= 100_000:
        return f"${count(round(dollars))}"
    if not nano_dollars or dollars >= 0.1:
        return f"${dollars:,.2f}"
    return f"${dollars:.{min(9, 1 - math.floor(math.log10(dollars)))}f}"


def known_money(nano_dollars: int, unpriced: int, write: Callable[[int], str] = money) -> str:
    """Write what requests cost of which so many have an unknown cost: `at least $1.20`, or `unknown`."""
    if not unpriced:
        return write(nano_dollars)
    return f"at least {write(nano_dollars)}" if nano_dollars else "unknown"


def exact_money(nano_dollars: int) -> str:
    """Write nano-dollars with all their digits but zeros at the end; cents at least."""
    whole, rest = divmod(nano_dollars, NANO_DOLLARS)
    digits = f"{rest:09d}"
    return f"${whole:,}.{digits[:2]}{digits[2:].rstrip('0')}"


def price_text(amount: Decimal) -> str:
    """Write US dollars with at least two decimals and without zeros that say nothing: $0.60, $0.075."""
    text = f"{amount:.9f}".rstrip("0")
    whole, _, cents = text.partition(".")
    return f"${whole}.{cents.ljust(2, '0')}"

"""Amounts of money (integer nano-dollars) and counts: conversion and formatting."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal

NANO_DOLLARS = 1_000_000_000


def nano(amount: Decimal) -> int:
    """Convert US dollars to integer nano-dollars."""
    return int((Decimal(amount) * NANO_DOLLARS).to_integral_value())


def dollars(nano: int) -> str:
    """Format nano-dollars as US dollars with nine decimals, exactly."""
    return f"{nano // NANO_DOLLARS}.{nano % NANO_DOLLARS:09d}"


def nano_dollars(dollars: Decimal | None) -> int | None:
    """Convert US dollars to integer nano-dollars; None stays None."""
    return None if dollars is None else nano(dollars)


COMPACT = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


def count(number: int) -> str:
    """Format a count: 1,204 or 1.23 M."""
    if abs(number) < 10_000:
        return f"{number:,}"
    # Round before choosing the letter: 999,999 is 1 M.
    rounded = float(f"{number:.2e}")
    size, letter = next(each for each in COMPACT if abs(rounded) >= each[0])
    return f"{rounded / size:.3g} {letter}"


def money(nano_dollars: int) -> str:
    """Format nano-dollars as $12.34; amounts below ten cents with two significant digits."""
    dollars = nano_dollars / NANO_DOLLARS
    if dollars >= 100_000:
        return f"${count(round(dollars))}"
    if not nano_dollars or dollars >= 0.1:
        return f"${dollars:,.2f}"
    return f"${dollars:.{min(9, 1 - math.floor(math.log10(dollars)))}f}"


def known_money(nano_dollars: int, unpriced: int, write: Callable[[int], str] = money) -> str:
    """Format the cost of requests of which `unpriced` have no known cost: `$1.20`, `at least $1.20`, or `unknown`."""
    if not unpriced:
        return write(nano_dollars)
    return f"at least {write(nano_dollars)}" if nano_dollars else "unknown"


def exact_money(nano_dollars: int) -> str:
    """Format nano-dollars with all significant decimals, at least two."""
    whole, rest = divmod(nano_dollars, NANO_DOLLARS)
    digits = f"{rest:09d}"
    return f"${whole:,}.{digits[:2]}{digits[2:].rstrip('0')}"


def price_text(amount: Decimal) -> str:
    """Format US dollars with all significant decimals, at least two: $0.60, $0.075."""
    text = f"{amount:.9f}".rstrip("0")
    whole, _, cents = text.partition(".")
    return f"${whole}.{cents.ljust(2, '0')}"

"""Numbers for reading, in the same format as on the public pages (static/site/format.js)."""

from __future__ import annotations

import math
from collections.abc import Callable

from accounts.refusals import NANO_DOLLARS

UNKNOWN = "\N{EN DASH}"
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


def milliseconds(ms: float | None) -> str:
    """Write milliseconds as 340 ms or 1.25 s."""
    if ms is None:
        return UNKNOWN
    if ms >= 1000:
        return f"{ms / 1000:.{2 if ms < 10_000 else 1}f} s"
    return f"{ms:.1f} ms".replace(".0 ", " ") if ms < 10 else f"{ms:.0f} ms"


def percent(share: float | None) -> str:
    """Write a share of 1 as 36 %, or 36.4 % where that is not whole."""
    return UNKNOWN if share is None else f"{share * 100:.1f}".removesuffix(".0") + " %"


def duration(seconds: float) -> str:
    """Write so many seconds as 42 s, 12 min, 5 h or 6 days."""
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"

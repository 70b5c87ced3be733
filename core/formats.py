"""Figures and times as people read them: the same in the admin, in messages and in e-mails.

`static/site/format.js` writes the same formats in the browser; `core/template_filters.py` offers them to templates.
A rounded figure comes with its exact one on hover. What is not known is NOTHING, never zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from core.money import NANO_DOLLARS

NOTHING = "\N{EN DASH}"

COMPACT = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


def count(number: int) -> str:
    """Format a count: 1,204 or 1.23 M."""
    if abs(number) < 10_000:
        return f"{number:,}"
    # Round before choosing the letter: 999,999 is 1 M.
    rounded = float(f"{number:.2e}")
    size, letter = next(each for each in COMPACT if abs(rounded) >= each[0])
    return f"{rounded / size:.3g} {letter}"


def quantity(number: int, noun: str) -> str:
    """Format a count of things: 1 request, 1,204 requests."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def money(nano_dollars: int) -> str:
    """Format nano-dollars as $12.34; amounts below ten cents with two significant digits."""
    if nano_dollars < 0:
        return f"-{money(-nano_dollars)}"
    dollars = nano_dollars / NANO_DOLLARS
    if dollars >= 100_000:
        return f"${count(round(dollars))}"
    if not nano_dollars or dollars >= 0.1:
        return f"${dollars:,.2f}"
    return f"${dollars:.{min(9, 1 - math.floor(math.log10(dollars)))}f}"


def about_count(number: float) -> str:
    """Format an estimated count with three significant digits: 1,230."""
    return count(round(float(f"{number:.2e}")))


def about_money(nano_dollars: float) -> str:
    """Format an estimated amount with three significant digits, and without cents from $10 on: $41, $1,230."""
    rounded = round(float(f"{nano_dollars:.2e}"))
    return (
        f"${round(rounded / NANO_DOLLARS):,}"
        if 10 * NANO_DOLLARS <= rounded < 100_000 * NANO_DOLLARS
        else money(rounded)
    )


def known_money(nano_dollars: int, unpriced: int, write: Callable[[int], str] = money) -> str:
    """Format the cost of requests of which `unpriced` have no known cost: `$1.20`, `at least $1.20`, or `unknown`."""
    if not unpriced:
        return write(nano_dollars)
    return f"at least {write(nano_dollars)}" if nano_dollars else "unknown"


def exact_money(nano_dollars: int) -> str:
    """Format nano-dollars with all significant decimals, at least two."""
    whole, rest = divmod(abs(nano_dollars), NANO_DOLLARS)
    digits = f"{rest:09d}"
    return f"{'-' if nano_dollars < 0 else ''}${whole:,}.{digits[:2]}{digits[2:].rstrip('0')}"


def cents(nano_dollars: int) -> str:
    """Format nano-dollars for a column of amounts: 1,234.50; less than half a cent is < 0.01, not nothing."""
    text = f"{nano_dollars / NANO_DOLLARS:,.2f}"
    return "< 0.01" if nano_dollars and text == "0.00" else text


def price_text(amount: Decimal) -> str:
    """Format US dollars with all significant decimals, at least two: $0.60, $0.075."""
    text = f"{amount:.9f}".rstrip("0")
    whole, _, cents = text.partition(".")
    return f"${whole}.{cents.ljust(2, '0')}"


def milliseconds(ms: float | None) -> str:
    """Format milliseconds as 340 ms or 1.25 s; None as NOTHING."""
    if ms is None:
        return NOTHING
    if ms >= 1000:
        return f"{ms / 1000:.{2 if ms < 10_000 else 1}f} s"
    return f"{ms:.1f} ms".replace(".0 ", " ") if ms < 10 else f"{ms:.0f} ms"


def about_milliseconds(ms: float | None) -> str:
    """Format a percentile of a histogram, which is within 5 %, with two digits: ~340 ms, ~1.3 s; None as NOTHING."""
    if ms is None:
        return NOTHING
    rounded = float(f"{ms:.1e}")
    return f"~{rounded / 1000:g} s" if rounded >= 1000 else f"~{rounded:g} ms"


def duration(seconds: float | None) -> str:
    """Format seconds as 42 s, 12 min, 5 h or 6 days; None as NOTHING."""
    if seconds is None:
        return NOTHING
    whole = max(0, math.ceil(seconds))
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{round(whole / 60)} min"
    return f"{round(whole / 3600)} h" if whole < 172_800 else f"{round(whole / 86_400)} days"


def percent(share: float | None) -> str:
    """Format a share (0 to 1) as 36 % or 36.4 %; None as NOTHING."""
    return NOTHING if share is None else f"{share * 100:.1f}".removesuffix(".0") + " %"


def utc_text(at: datetime | None, absent: str = "never", *, seconds: bool = False) -> str:
    """Format a time in UTC, to the minute or second: 2026-11-30 23:50 UTC."""
    return absent if at is None else at.astimezone(UTC).strftime(f"%Y-%m-%d %H:%M{':%S' if seconds else ''} UTC")


def clock_text(at: datetime, now: datetime, *, with_day: bool = False) -> str:
    """Format a time in UTC as 15:25 UTC, on another day (or `with_day`) as 30 Nov 15:25 UTC."""
    day = "" if at.date() == now.date() and not with_day else "%-d %b " if at.year == now.year else "%-d %b %Y "
    return f"{at:{day}%H:%M} UTC"


def span_text(begin: datetime, end: datetime | None, now: datetime) -> str:
    """Format a span as `30 Nov 15:25-16:04 UTC (39 min)`, one that is not over as `since 30 Nov 15:25 UTC (39 min)`."""
    first, lasted = clock_text(begin, now, with_day=True), duration(((end or now) - begin).total_seconds())
    if end is None:
        return f"since {first} ({lasted})"
    is_one_day = end.date() == begin.date()
    last = f"{NOTHING}{end:%H:%M} UTC" if is_one_day else f" {NOTHING} {clock_text(end, now, with_day=True)}"
    return f"{first.removesuffix(' UTC')}{last} ({lasted})"


def day_text(at: datetime) -> str:
    """Format a day of the year: 27 December."""
    return f"{at.day} {at:%B}"


def ago(at: datetime | None, now: datetime, absent: str = "never") -> str:
    """Format a time as the time since then, or until then: 42 s ago, 59 min ago, 3 h ago, in 12 days.

    Up to a minute ahead of `now` it is "just now": the clock of another node may be ahead.
    """
    if at is None:
        return absent
    since = (now - at).total_seconds()
    if -60 < since < 1:
        return "just now"
    size, unit = next(each for each in ((86_400, "day"), (3600, "h"), (60, "min"), (1, "s")) if abs(since) >= each[0])
    is_days_ahead = unit == "day" and since < 0  # a key made for 90 days expires in 90, not in 89
    number = round(abs(since) / size) if is_days_ahead else int(abs(since) // size)
    text = f"{number} {unit}{'s' if unit == 'day' and number != 1 else ''}"
    return f"{text} ago" if since > 0 else f"in {text}"


def lately(at: datetime, now: datetime) -> str:
    """Format a time of a log: 59 min ago within the last hour, and before that 30 Nov 15:25:02."""
    if now - at < timedelta(hours=1):
        return ago(at, now)
    return f"{at.astimezone(UTC):{'%-d %b' if at.year == now.year else '%-d %b %Y'} %H:%M:%S}"

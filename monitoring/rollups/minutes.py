"""The last hours by the minute, of all accounts together: what a dashboard looks at while something happens."""

from __future__ import annotations

from datetime import datetime

from monitoring.rollups.figures import Figures
from monitoring.rollups.periods import minute_of, moment_of_minute
from monitoring.rollups.selectors import Pieces, Scope, collect, costs_of
from monitoring.rollups.tallies import MINUTE, PLATFORM

Span = tuple[datetime, datetime]


def usage_by_minute(*, span: Span, before: Span, scope: Scope) -> tuple[dict[datetime, Figures], Figures]:
    """Add up a span by minute, and the span `before` as one; both begin and end with whole minutes.

    The scope names no account and no key.
    """
    minutes, earlier = collect(lambda whose: [_pieces(whose, span), dict.fromkeys(_pieces(whose, before))], scope)
    by_minute = {moment_of_minute(minute): figures for (minute, _), figures in minutes.items() if minute is not None}
    return by_minute, earlier.get((None, None), Figures())


def costs_by_minute(*, span: Span, scope: Scope) -> dict[tuple[datetime, str], int]:
    """Add up what each model cost by minute; what cost nothing is left out. The scope names no account and no key."""
    return costs_of(_pieces(PLATFORM, span), moment_of_minute, scope)


def _pieces(whose: str, span: Span) -> Pieces:
    return {(whose + MINUTE, minute): minute for minute in range(*map(minute_of, span))}

"""Arguments of commands: types for argparse whose error messages name the accepted values, and a check of times."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from datetime import datetime

from django.core.management.base import CommandError

from core.times import parse_datetime


def whole(minimum: int, maximum: int) -> Callable[[str], int]:
    """Return the argparse type of a whole number from `minimum` to `maximum`, both included."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = minimum - 1
        if not minimum <= number <= maximum:
            raise ArgumentTypeError(f"{text} is not a whole number from {minimum} to {maximum}")
        return number

    return read


def days(text: str) -> float:
    """Parse a number of days, fractions included: above 0 and up to 36,500 (a hundred years)."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 36_500:
        raise ArgumentTypeError(f"{text} is not a number of days above 0 and up to 36500")
    return number


def datetime_argument(text: str) -> datetime:
    """Parse an ISO date (midnight) or datetime, in UTC unless it names an offset; for argparse's `type`."""
    try:
        return parse_datetime(text)
    except ValueError:
        raise ArgumentTypeError(f"{text} is not a date or time: give 2026-11-24 or 2026-11-24T18:00") from None


def require_order(begin: datetime | None, end: datetime | None) -> None:
    """Raise CommandError for an empty time range: the command would do nothing and seem to succeed."""
    if begin is not None and end is not None and begin >= end:
        raise CommandError("--from must be before --to.")

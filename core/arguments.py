"""Types for argparse whose error messages name the accepted values."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable


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

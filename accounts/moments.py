"""Moments as people write them: in addresses, in forms and on the command line."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo


class TooFar(ValueError):
    """In UTC it would be before the year 1 or after 9999."""


def read_moment(text: str, zone: tzinfo = UTC) -> datetime:
    """Read an ISO date (its midnight) or date-time, of a zone unless it names an offset, as a moment in UTC.

    Raises ValueError for any other text; TooFar, one of those, for a moment that UTC has no year for.
    """
    found = datetime.fromisoformat(text)
    try:
        return (found if found.tzinfo else found.replace(tzinfo=zone)).astimezone(UTC)
    except OverflowError as error:
        raise TooFar from error

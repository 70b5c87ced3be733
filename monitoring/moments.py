"""Moments as operators type them on the command line."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime


def typed_moment(text: str) -> datetime:
    """Read an ISO date (its midnight) or date-time, in UTC unless it says otherwise; for argparse's `type`."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no moment: give 2026-11-24 or 2026-11-24T18:00") from None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)

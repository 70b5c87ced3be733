"""Moments as operators type them on the command line."""

from __future__ import annotations

import argparse
from datetime import datetime

from accounts.moments import read_moment


def typed_moment(text: str) -> datetime:
    """Read an ISO date (its midnight) or date-time, in UTC unless it says otherwise; for argparse's `type`."""
    try:
        return read_moment(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no moment: give 2026-11-24 or 2026-11-24T18:00") from None

"""Moments as operators type them on the command line."""

from __future__ import annotations

from argparse import ArgumentTypeError
from datetime import datetime

from django.core.management.base import CommandError

from accounts.moments import read_moment


def typed_moment(text: str) -> datetime:
    """Read an ISO date (its midnight) or date-time, in UTC unless it says otherwise; for argparse's `type`."""
    try:
        return read_moment(text)
    except ValueError:
        raise ArgumentTypeError(f"{text} is no moment: give 2026-11-24 or 2026-11-24T18:00") from None


def require_order(begin: datetime | None, end: datetime | None) -> None:
    """Refuse a span that ends before it begins: it would hold nothing, and look as if all were well."""
    if begin is not None and end is not None and begin >= end:
        raise CommandError("--from must be before --to.")

"""Ids in order of time: what a record's UUIDv7 says of when the request came in."""

from __future__ import annotations

import os
import time
import uuid
from datetime import datetime, timedelta

#: How far the time in a record's id may be from its time of admission: they come from two clocks.
CLOCK_SLACK = timedelta(minutes=10)


def new_id() -> uuid.UUID:
    """Make a UUIDv7 of the wall clock's present milliseconds and 74 random bits (RFC 9562, section 5.7).

    A clock that is set back sets later ids back as well: libraries whose ids never go back would hold them ahead.
    """
    random = int.from_bytes(os.urandom(10), "big")
    high = time.time_ns() // 1_000_000 << 16 | 7 << 12 | random >> 68
    return uuid.UUID(int=high << 64 | 0b10 << 62 | random & (1 << 62) - 1)


def first_id(moment: datetime, shift: timedelta = timedelta()) -> uuid.UUID:
    """Return the lowest UUIDv7 of a moment: its milliseconds in the first 48 bits (RFC 9562, section 5.7).

    Of moments before 1970, which have none, it is the lowest of all. A `shift` may lead beyond what a datetime can be.
    """
    milliseconds = int((moment.timestamp() + shift.total_seconds()) * 1000)
    return uuid.UUID(int=max(0, milliseconds) << 80)

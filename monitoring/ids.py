"""Ids of records. They tell the time of the process that made them, and nothing is selected or ordered by that."""

from __future__ import annotations

import os
import time
import uuid


def new_id() -> uuid.UUID:
    """Make a UUIDv7 of the wall clock's present milliseconds and 74 random bits (RFC 9562, section 5.7).

    A clock that is set back sets later ids back as well: libraries whose ids never go back would hold them ahead.
    """
    random = int.from_bytes(os.urandom(10), "big")
    high = time.time_ns() // 1_000_000 << 16 | 7 << 12 | random >> 68
    return uuid.UUID(int=high << 64 | 0b10 << 62 | random & (1 << 62) - 1)

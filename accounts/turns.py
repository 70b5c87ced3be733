"""Turns between what takes long: a worker does one thing at a time, and everybody else waits meanwhile."""

from __future__ import annotations

import time

#: Not 0: then gevent's loop goes on here before it has looked for new connections and bytes.
LEAST_SLEEP = 0.0005
#: Bytes from which on a step takes so many milliseconds that others get their turn after it.
LARGE = 1024 * 1024


def give_turn(size: int) -> None:
    """Let others have their turn after a step over so many bytes, if they are many."""
    if size >= LARGE:
        time.sleep(LEAST_SLEEP)

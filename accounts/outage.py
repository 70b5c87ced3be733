"""A database that is away is asked by one caller at a time, so that nobody waits behind the others for nothing.

A connection that can't be had costs its caller the whole time-out of the pool. Without this, requests of one key would
wait for it one after the other, each of them as long.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

#: Seconds after a failure in which nobody asks again, and for which others leave one who asks alone.
RETRY_AFTER = 1.0
ASKING = 10.0


class Outage:
    """What a process knows of the database: whether it failed the last time, and when to ask it again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._ask_at: float | None = None

    def may_ask(self) -> bool:
        """Say whether the caller should ask the database now: always, unless it failed the last time.

        Who is let through while it is away keeps others from asking meanwhile, until he tells what came of it.
        """
        with self._lock:
            if self._ask_at is None:
                return True
            if self._clock() < self._ask_at:
                return False
            self._ask_at = self._clock() + ASKING
            return True

    @property
    def is_on(self) -> bool:
        """Say whether it failed the last time."""
        return self._ask_at is not None

    def failed(self) -> None:
        """Note that the database could not be asked."""
        with self._lock:
            self._ask_at = self._clock() + RETRY_AFTER

    def over(self) -> None:
        """Note that it answered."""
        self._ask_at = None


#: What this process knows of the database itself, for all who ask it promptly.
database_outage = Outage()

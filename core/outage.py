"""Outages of dependencies: while one is down, one caller at a time tries it, and the others fail at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

#: Seconds after a failed attempt before the next one, and after which an attempt without a result blocks no other.
RETRY_AFTER = 1.0
LONGEST_ATTEMPT = 10.0


class Outage:
    """Whether this process's last attempt to use a dependency failed, and when the next one may be made."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._next_attempt: float | None = None

    @property
    def is_on(self) -> bool:
        """Return whether the last attempt failed."""
        return self._next_attempt is not None

    def may_try(self) -> bool:
        """Return whether the caller may try now: always without an outage, otherwise one caller a second.

        That one calls `failed` or `succeeded` afterwards; until then, or for LONGEST_ATTEMPT, no other may try.
        """
        with self._lock:
            if self._next_attempt is None:
                return True
            if self._clock() < self._next_attempt:
                return False
            self._next_attempt = self._clock() + LONGEST_ATTEMPT
            return True

    def failed(self) -> None:
        """Record a failed attempt: the outage begins or goes on."""
        with self._lock:
            self._next_attempt = self._clock() + RETRY_AFTER

    def succeeded(self) -> None:
        """Record a successful attempt: there is no outage."""
        self._next_attempt = None

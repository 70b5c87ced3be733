"""A bound on the calls that a process makes to providers at once, with a short fair queue before it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings

from accounts.exceptions import UpstreamBusy
from monitoring.metrics import upstream_calls, upstream_queue


class Capacity:
    """So many places, given in the order in which they were asked for."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.taken = 0
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    @property
    def queued(self) -> int:
        """How many calls wait for a place."""
        return len(self._waiting)

    @contextmanager
    def place(self, seconds: float) -> Iterator[None]:
        """Hold a place while the block runs; raises UpstreamBusy when none is free within the seconds."""
        self._take(seconds)
        upstream_calls.set(self.taken)
        try:
            yield
        finally:
            self._give_back()
            upstream_calls.set(self.taken)

    def _take(self, seconds: float) -> None:
        with self._lock:
            if self.taken < self.places:
                self.taken += 1
                return
            turn = threading.Event()
            self._waiting.append(turn)
        upstream_queue.set(self.queued)
        try:
            self._wait(turn, seconds)
        finally:
            upstream_queue.set(self.queued)

    def _wait(self, turn: threading.Event, seconds: float) -> None:
        if turn.wait(seconds):
            return
        with self._lock:
            if turn.is_set():  # the place came while the wait ended
                return
            self._waiting.remove(turn)
        raise UpstreamBusy(retry_after=1)

    def _give_back(self) -> None:
        """Hand the place to the first who waits, without ever freeing it in between."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self.taken -= 1


class _ProcessCapacity:
    """The process's places, as many as UPSTREAM_CONCURRENCY says when first asked for."""

    def __init__(self) -> None:
        self._capacity: Capacity | None = None

    def __call__(self) -> Capacity:
        """Return the one capacity."""
        if self._capacity is None or self._capacity.places != settings.UPSTREAM_CONCURRENCY:
            self._capacity = Capacity(settings.UPSTREAM_CONCURRENCY)
        return self._capacity


capacity = _ProcessCapacity()

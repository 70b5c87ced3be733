"""Values that a process keeps for a short time, each loaded once for all requests that need it."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from django.db import Error as DatabaseError

from core.errors import DependencyUnavailable
from core.outage import Outage

#: Seconds to wait for another thread's load where an older value would do, or during an outage.
KNOWN_WAIT = 0.1

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class TtlCache(Generic[K, V]):
    """Return values by key that are at most `max_age` seconds old, and load the others.

    Concurrent requests for one key share a load, and at most `loaders` keys are loaded at once: if the database hangs,
    only so many requests wait for it. While `load` raises DatabaseError, values that are at most `grace()` seconds
    older are returned; without one, `get` raises DependencyUnavailable. A value's age counts from before its load
    began, so that a change that the load missed is seen `max_age` later; with `from_end`, from the end of its load, so
    that a load that takes longer than `max_age` is shared too. At most `size` values are kept.
    """

    def __init__(
        self,
        load: Callable[[K], V],
        *,
        max_age: float = 1.0,
        grace: Callable[[], float] = lambda: 0.0,
        from_end: bool = False,
        outage: Outage | None = None,
        loaders: int = 4,
        size: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load, self._max_age, self._grace, self._size, self._clock = load, max_age, grace, size, clock
        self._from_end = from_end
        self._outage = outage or Outage(clock)
        self._values: OrderedDict[K, tuple[V, float]] = OrderedDict()
        self._locks: dict[K, threading.Lock] = {}
        self._loaders = threading.BoundedSemaphore(loaders)

    def get(self, key: K) -> V:
        """Return a key's value; raises DependencyUnavailable, or any other error of `load`."""
        # each is a pair of value and time, and so true even for a value of None
        found = self._kept(key) or self._loaded(key) or self._kept(key, self._grace())
        if found is None:
            raise DependencyUnavailable
        return found[0]

    def clear(self) -> None:
        """Drop all values, for example after a change by this process."""
        self._values.clear()

    def __len__(self) -> int:
        return len(self._values)

    def _kept(self, key: K, grace: float = 0.0) -> tuple[V, float] | None:
        found = self._values.get(key)
        return found if found is not None and self._clock() - found[1] < self._max_age + grace else None

    def _loaded(self, key: K) -> tuple[V, float] | None:
        """Load a value, or wait for another thread that does; return None if that fails or takes too long."""
        wait = KNOWN_WAIT if self._outage.is_on or self._kept(key, self._grace()) else None
        lock = self._locks.setdefault(key, threading.Lock())
        if not lock.acquire(timeout=-1 if wait is None else wait):
            return None
        try:
            return self._kept(key) or self._load_once(key, wait)
        finally:
            lock.release()
            self._locks.pop(key, None)

    def _load_once(self, key: K, wait: float | None) -> tuple[V, float] | None:
        """Load a value as one of at most `loaders` threads; return None if it can't begin in time, or fails."""
        if not self._loaders.acquire(timeout=wait):
            return None
        try:
            began = self._clock()
            value = self._load(key)
            found = value, self._clock() if self._from_end else began
        except DatabaseError:
            return None
        finally:
            self._loaders.release()
        self._values[key] = found
        self._values.move_to_end(key)
        while len(self._values) > self._size:
            self._values.popitem(last=False)
        return found

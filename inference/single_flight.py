"""Single flight: identical calls in flight, on one node or several, cause one upstream call, also where that fails.

Within a process, the first call for a cache key leads; the others follow, and wait for its outcome. Among processes,
the reservation of the leading call holds the flight (see accounts.limits). A call that finds it held elsewhere asks
again until it has ended, and then looks into the cache. If that process dies, the next that asks takes the flight over,
within about a second. A leader that was taken over finishes and is billed, but does not store its answer. Without a
shared cache, while the state store is down, or once two calls elsewhere have left no answer in the cache, each process
works alone.

A follower waits no longer than its own call may take; then it gets a 504 and makes no call.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from django.conf import settings

from accounts.limits.types import InFlight
from core.errors import ApiError, ContentFiltered, InvalidRequest, UpstreamBusy, UpstreamFailed, UpstreamTimeout
from inference.cache import CachedAnswer, look_up
from inference.upstream.errors import Deadline

#: Seconds between two questions whether a flight elsewhere has ended.
LOOK_SECONDS = 0.1
#: Seconds between two checks whether a follower's answer is still wanted.
WANTED_SECONDS = 0.5

#: Failures of a provider that followers in other processes share, by name.
SHARED_ERRORS = {each.__name__: each for each in (InvalidRequest, UpstreamFailed, ContentFiltered, UpstreamTimeout)}


def pack_error(error: ApiError) -> str:
    """Encode a provider's failure for followers in other processes."""
    told = [type(error).__name__, error.detail, error.param, error.error_code, getattr(error, "retry_after", 0)]
    return json.dumps(told, separators=(",", ":"))


def unpack_error(text: str) -> ApiError:
    """Rebuild an error. An unknown type, from another version of the program, becomes UpstreamFailed."""
    name, detail, param, code, retry_after = json.loads(text)
    if name == UpstreamBusy.__name__:
        busy = UpstreamBusy(detail, retry_after=retry_after)
        busy.error_code = code
        return busy
    kind = SHARED_ERRORS.get(name, UpstreamFailed)
    return kind(detail, param=param, code=code)


@dataclass(slots=True)
class Wait:
    """A call's wait for an identical one: until its own deadline, or until `is_unwanted` returns a reason.

    `key` is that of the answer in the cache. `since` (µs, by the state store's clock) is when the call was admitted, or
    when it last heard that another process makes the call: what ends later matters to it.
    """

    key: str
    deadline: Deadline
    since: int
    is_unwanted: Callable[[], object] | None = None
    #: Whether the call follows another now.
    follows: bool = False
    #: How many calls elsewhere have left no answer in the cache.
    misses: int = 0

    @property
    def is_alone(self) -> bool:
        """Return whether to wait for no further call elsewhere: processes that took turns would be late."""
        return self.misses > 1

    def lasts(self) -> bool:
        """Return whether to continue waiting; raises UpstreamTimeout after the deadline."""
        if self.is_unwanted is not None and self.is_unwanted():
            return False
        if self.deadline.is_over:
            raise UpstreamTimeout
        return True

    def elsewhere(self, other: InFlight) -> CachedAnswer | None:
        """Wait a little while another process makes the call; once it has ended, return its answer.

        None if it is still in flight, has left no answer, or the answer is no longer wanted.
        """
        self.since = other.at
        if not other.is_open:
            answer = look_up(self.key)
            self.misses += answer is None
            return answer
        self.follows = True
        if self.lasts():
            time.sleep(min(LOOK_SECONDS, self.deadline.left))
        return None


class Flight:
    """The call for one key in this process. The leader ends it with Flights.leave; followers wait."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.followers = 0
        self._over = threading.Event()
        self._answer: CachedAnswer | None = None
        self._error: ApiError | None = None
        self._failed_at: int | None = None

    def end(self, answer: CachedAnswer | None, error: ApiError | None, failed_at: int | None = None) -> None:
        """Pass the outcome to the followers; an error only to those admitted by `failed_at` (µs; None: to all).

        With neither an answer nor an error, another call has to lead.
        """
        self._answer, self._error, self._failed_at = answer, error, failed_at
        self._over.set()

    def outcome(self, wait: Wait) -> CachedAnswer | None:
        """Wait for an answer; None if another call has to lead, or the answer is no longer wanted.

        Raises the leader's error, or UpstreamTimeout after the deadline.
        """
        # Never wait for an event that is set: if it is about to wake its waiters and the last of them times out first,
        # gevent 26.9 never wakes a greenlet that began to wait meanwhile (its unlink stops the notifier).
        while not (self._over.is_set() or self._over.wait(min(WANTED_SECONDS, wait.deadline.left))):
            if not wait.lasts():
                break
        if self._error is not None and (self._failed_at is None or wait.since <= self._failed_at):
            raise self._error
        return self._answer


class Flights:
    """The flights of a process."""

    def __init__(self) -> None:
        self._open: dict[str, Flight] = {}
        self._lock = threading.Lock()

    def join(self, wait: Wait) -> Flight | CachedAnswer | None:
        """Return the answer of another call, or a flight to lead, which the caller must end with `leave`.

        None if the answer is no longer wanted. Raises the leader's error, or UpstreamTimeout after the deadline.
        """
        while wait.lasts():
            with self._lock:
                flight = self._open.get(wait.key)
                if flight is None:
                    flight = self._open[wait.key] = Flight(wait.key)
                    break
                flight.followers += 1
            wait.follows = True
            try:
                answer = flight.outcome(wait)
            finally:
                with self._lock:
                    flight.followers -= 1
            wait.follows = False
            if answer is not None:
                return answer
        else:
            return None
        # A flight may have ended since this call looked into the cache. Where others share it, the reservation tells.
        if not settings.CACHE_URL and (answer := look_up(wait.key)) is not None:
            self.leave(flight, answer=answer)
            return answer
        return flight

    def leave(
        self,
        flight: Flight,
        *,
        answer: CachedAnswer | None = None,
        error: ApiError | None = None,
        failed_at: int | None = None,
    ) -> None:
        """End a flight that the caller leads, with its outcome (see Flight.end)."""
        with self._lock:
            if self._open.get(flight.key) is flight:
                del self._open[flight.key]
        flight.end(answer, error, failed_at)


flights = Flights()

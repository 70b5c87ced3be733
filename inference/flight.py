"""Single flight: identical requests at the same time, on one node or several, cause one upstream call.

The first request of a process for a cache key leads there; the others wait for it. Between processes the leader is the
one that holds a lease in the state store (LEASE_MS, renewed while it works); the leaders of other processes look for
its answer in the cache, and for its failure beside the lease. If it dies, the lease runs out and the next that looks
takes over, within a second. A leader that lost its lease finishes and is billed, but doesn't store its answer. Without
a cache that all share, or while the state store is away, each process is on its own.

Nobody waits longer than his own call may take: whose time is up gets a 504, and makes no call.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from django.conf import settings

from accounts.exceptions import ApiError, UpstreamTimeout
from accounts.loops import WorkThread, outlived
from inference.cache import CachedAnswer, look_up
from inference.flight_leases import Asked, FlightLeases
from inference.upstream.attempts import Deadline

RENEW_SECONDS = 0.3
LOOK_SECONDS = 0.1
#: Seconds between two looks whether a follower is still wanted.
WATCH_SECONDS = 0.5


def _never() -> bool:
    return False


@dataclass(slots=True)
class Wait:
    """One caller's wait for a flight: until the deadline of its own call, or soon after it `is_unwanted`."""

    deadline: Deadline
    is_unwanted: Callable[[], bool] = _never
    #: Whether it waits for another's call now, and whether it ever did.
    follows: bool = False
    has_followed: bool = False
    began: float = field(default_factory=time.monotonic)

    @property
    def waited_ms(self) -> int:
        """Milliseconds since it began, rounded up; 0 if it never followed another: it waited for nobody."""
        return int((time.monotonic() - self.began) * 1000) + 1 if self.has_followed else 0

    def follow(self) -> None:
        """Note that another has the lead."""
        self.follows = self.has_followed = True

    def lasts(self) -> bool:
        """Say whether to wait on; raises UpstreamTimeout once the time is up."""
        if self.is_unwanted():
            return False
        if self.deadline.is_over:
            raise UpstreamTimeout
        return True


class Flight:
    """One key's call in this process. The leader ends it by Flights.leave; the others wait."""

    def __init__(self) -> None:
        self.token = uuid.uuid4().hex
        self.has_lease = False
        self.followers = 0
        self._over = threading.Event()
        self._answer: CachedAnswer | None = None
        self._error: ApiError | None = None
        self._failed_at = 0.0

    def end(self, answer: CachedAnswer | None, error: ApiError | None, failed_at: float | None = None) -> None:
        """Hand the outcome to those who wait, an error to those who did when it was met (None: now).

        Neither: somebody else has to lead.
        """
        self._answer, self._error = answer, error
        self._failed_at = time.monotonic() if failed_at is None else failed_at
        self._over.set()

    def outcome(self, wait: Wait) -> CachedAnswer | None:
        """Wait for an answer; None if somebody else has to lead, or nobody wants it any more.

        Raises the leader's error, or UpstreamTimeout when the time is up.
        """
        # An event that is set must not be waited for: where it is about to wake its waiters, and the time of the last
        # of them runs out first, gevent 26.9 never wakes who came meanwhile (its unlink stops the notifier).
        while not (self._over.is_set() or self._over.wait(min(WATCH_SECONDS, wait.deadline.left))):
            if not wait.lasts():
                break
        if self._error is not None and wait.began <= self._failed_at:
            raise self._error
        return self._answer


class Flights:
    """The flights of a process."""

    def __init__(self) -> None:
        self._open: dict[str, Flight] = {}
        self._lock = threading.Lock()
        self._leases = FlightLeases()
        self._keeper = WorkThread(
            self._renew_all,
            has_work=lambda: bool(self._held()),
            seconds=lambda: RENEW_SECONDS,
            name="flight-keeper",
            event="flights_not_renewed",
        )

    def join(self, key: str, wait: Wait) -> Flight | CachedAnswer | None:
        """Return an answer that somebody else got meanwhile, or a flight to lead, which the caller has to end.

        None once the caller's answer is unwanted. Raises the error that a leader met, or UpstreamTimeout when the time
        is up.
        """
        while wait.lasts():
            flight, leads = self._enter(key)
            if leads:
                return self._lead(key, flight, wait)
            answer = self._follow(flight, wait)
            if answer is not None:
                return answer
        return None

    def leave(
        self,
        key: str,
        flight: Flight,
        *,
        answer: CachedAnswer | None = None,
        error: ApiError | None = None,
        failed_at: float | None = None,
    ) -> None:
        """End a flight that the caller leads, with its outcome (see Flight.end)."""
        with self._lock:
            if self._open.get(key) is flight:
                del self._open[key]
        if flight.has_lease:
            flight.has_lease = False
            self._leases.release(key, flight.token, error)
        flight.end(answer, error, failed_at)

    def may_store(self, flight: Flight) -> bool:
        """Say whether the leader still leads: in a cache of this process it always does."""
        return flight.has_lease or not settings.CACHE_URL

    def is_awaited(self, key: str, flight: Flight) -> bool:
        """Say whether others wait for a flight, in this process or in another."""
        return flight.followers > 0 or (flight.has_lease and self._leases.is_awaited(key))

    def _enter(self, key: str) -> tuple[Flight, bool]:
        with self._lock:
            flight = self._open.get(key)
            if flight is not None:
                flight.followers += 1
                return flight, False
            flight = self._open[key] = Flight()
            return flight, True

    def _follow(self, flight: Flight, wait: Wait) -> CachedAnswer | None:
        wait.follow()
        try:
            return flight.outcome(wait)
        finally:
            with self._lock:
                flight.followers -= 1

    def _lead(self, key: str, flight: Flight, wait: Wait) -> Flight | CachedAnswer | None:
        """Lead in this process, and among processes where none has the lease; else wait for the other's outcome."""
        outcome: Flight | CachedAnswer | Asked | None = None
        try:
            outcome = self._await_lease(key, flight, wait)
        finally:
            if outcome is not flight:
                answer = outcome if isinstance(outcome, CachedAnswer) else None
                failed = outcome if isinstance(outcome, Asked) else Asked()
                self.leave(key, flight, answer=answer, error=failed.error, failed_at=failed.failed_at)
        if isinstance(outcome, Asked) and outcome.error is not None:
            raise outcome.error
        wait.follows = False
        return outcome if not isinstance(outcome, Asked) else None

    def _await_lease(self, key: str, flight: Flight, wait: Wait) -> Flight | CachedAnswer | Asked | None:
        """Wait until this process holds the key's lease (the flight), another got an outcome, or nobody wants it.

        Who found nothing in the cache may come when the flight that filled it is over, and has to look again.
        """
        if not settings.CACHE_URL:
            return look_up(key) or flight
        while (asked := self._leases.take(key, flight.token, waited_ms=wait.waited_ms)) and not asked.is_granted:
            if asked.error is not None:
                return asked
            wait.follow()
            if not wait.lasts():
                return None
            time.sleep(min(LOOK_SECONDS, wait.deadline.left))
            answer = look_up(key)
            if answer is not None:
                return answer
        if asked is not None:
            flight.has_lease = True
            self._keeper.begin()
        is_late = wait.has_followed or (asked is not None and asked.is_late)
        return (look_up(key) if is_late else None) or flight

    def _held(self) -> list[tuple[str, Flight]]:
        with self._lock:
            return [(key, flight) for key, flight in self._open.items() if flight.has_lease]

    def _renew_all(self) -> None:
        """Renew every lease that is held; one that is gone is noted, so that its leader won't store.

        All at once: one after the other, many would take longer than a lease lasts.
        """
        held = self._held()
        if not outlived(partial(self._renew, held), event="flights_not_renewed"):
            for _, flight in held:
                flight.has_lease = False

    def _renew(self, held: Sequence[tuple[str, Flight]]) -> None:
        renewed = self._leases.renew_each([(key, flight.token) for key, flight in held])
        for (_, flight), is_held in zip(held, renewed, strict=True):
            flight.has_lease = is_held and flight.has_lease


flights = Flights()

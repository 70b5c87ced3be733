"""Single flight: identical requests at the same time, on one node or several, cause one upstream call.

The first request of a process for a cache key leads there; the others wait for it. Between processes the leader is the
one that holds a lease in the state store (LEASE_MS, renewed while it works); the leaders of other processes look for
its answer in the cache. If it dies, the lease runs out and the next that looks takes over, within a second. A leader
that lost its lease finishes and is billed, but doesn't store its answer. Without Redis, or while it is away, each
process is on its own.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog
from django.conf import settings
from redis.exceptions import RedisError

from accounts.exceptions import ApiError
from accounts.limits import get_limits
from accounts.limits.redis import redis_client, wire_for
from accounts.limits.scripts import Script, script
from accounts.limits.wire import Wire
from accounts.loops import outlived
from inference.cache import CachedAnswer, look_up

LEASE_MS = 900
RENEW_SECONDS = 0.3
LOOK_SECONDS = 0.1
#: Seconds between two looks whether a follower is still wanted.
WATCH_SECONDS = 0.5
_TAKE = script(b"return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0")
_RENEW = script(b"return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0")
_RELEASE = script(b"return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0")

log = structlog.get_logger(__name__)


class Flight:
    """One key's call in this process. The leader ends it by Flights.leave; the others wait."""

    def __init__(self) -> None:
        self.token = uuid.uuid4().hex
        self.has_lease = False
        self.followers = 0
        self._over = threading.Event()
        self._answer: CachedAnswer | None = None
        self._error: ApiError | None = None

    def end(self, answer: CachedAnswer | None = None, error: ApiError | None = None) -> None:
        """Hand the outcome to those who wait; neither: somebody else has to lead."""
        self._answer, self._error = answer, error
        self._over.set()

    def wait(self, seconds: float, is_unwanted: Callable[[], bool]) -> CachedAnswer | None:
        """Wait for the outcome: an answer, or None if somebody else has to lead; raises the leader's error.

        The wait is over too after so many seconds, or soon after it is unwanted.
        """
        ends = time.monotonic() + seconds
        while not self._over.wait(max(0.0, min(WATCH_SECONDS, ends - time.monotonic()))):
            if time.monotonic() >= ends or is_unwanted():
                break
        if self._error is not None:
            raise self._error
        return self._answer


class Flights:
    """The flights of a process."""

    def __init__(self) -> None:
        self._open: dict[str, Flight] = {}
        self._lock = threading.Lock()
        self._wire: Wire | None = None
        self._keeping = False

    def join(
        self, key: str, *, seconds: float, is_unwanted: Callable[[], bool] = lambda: False
    ) -> Flight | CachedAnswer:
        """Return an answer that somebody else got meanwhile, or a flight to lead, which the caller has to end.

        Waits at most `seconds`, or until `is_unwanted`, after which the caller flies alone. Raises the error that a
        leader met.
        """
        deadline = time.monotonic() + seconds

        def is_over() -> bool:
            return time.monotonic() >= deadline or is_unwanted()

        while True:
            flight, leads = self._enter(key)
            if leads:
                return self._lead(key, flight, is_over)
            try:
                answer = flight.wait(deadline - time.monotonic(), is_unwanted)
            finally:
                self._step_out(flight)
            if answer is not None:
                return answer
            if is_over():
                return Flight()

    def _lead(self, key: str, flight: Flight, is_over: Callable[[], bool]) -> Flight | CachedAnswer:
        """Lead in this process, and among processes where this one gets the lease before another has the answer."""
        answer = self._take_lease(key, flight, is_over)
        if answer is None:
            return flight
        self.leave(key, flight, answer=answer)
        return answer

    def leave(
        self, key: str, flight: Flight, *, answer: CachedAnswer | None = None, error: ApiError | None = None
    ) -> None:
        """End a flight that the caller leads, with its outcome; neither: somebody else has to lead."""
        with self._lock:
            if self._open.get(key) is flight:
                del self._open[key]
        if flight.has_lease:
            flight.has_lease = False
            self._on_store(_RELEASE, key, flight.token)
        flight.end(answer, error)

    def may_store(self, flight: Flight) -> bool:
        """Say whether the leader still leads: without a store it always does."""
        return flight.has_lease or not settings.REDIS_URL

    def _enter(self, key: str) -> tuple[Flight, bool]:
        with self._lock:
            flight = self._open.get(key)
            if flight is not None:
                flight.followers += 1
                return flight, False
            flight = self._open[key] = Flight()
            return flight, True

    def _step_out(self, flight: Flight) -> None:
        with self._lock:
            flight.followers -= 1

    def _take_lease(self, key: str, flight: Flight, is_over: Callable[[], bool]) -> CachedAnswer | None:
        """Wait until this process holds the key's lease (None), or another's answer is in the cache."""
        if not settings.REDIS_URL:
            return None
        waited = False
        while not self._acquire(key, flight):
            waited = True
            if is_over():
                return None
            time.sleep(LOOK_SECONDS)
            answer = look_up(key)
            if answer is not None:
                return answer
        return look_up(key) if waited else None

    def _acquire(self, key: str, flight: Flight) -> bool:
        """Ask for the lease; a store that is away gives it to everyone."""
        granted = self._on_store(_TAKE, key, flight.token, LEASE_MS)
        if granted is None:
            return True
        if granted:
            flight.has_lease = True
            self._keep()
        return bool(granted)

    def _on_store(self, asked: Script, key: str, *arguments: str | int) -> Any:
        """Ask the state store; None while it is away, as the limits noticed or this very question does."""
        if getattr(get_limits(), "is_degraded", False):
            return None
        try:
            if self._wire is None:
                self._wire = wire_for(redis_client(settings.REDIS_URL))
            return self._wire.call(asked, f"aiapi:flight:{key}", arguments)
        except RedisError as error:
            log.warning("flight_store_failed", cause=type(error).__name__)
            return None

    def _keep(self) -> None:
        with self._lock:
            if self._keeping:
                return
            self._keeping = True
        threading.Thread(target=self._renew_all, name="flight-keeper", daemon=True).start()

    def _renew_all(self) -> None:
        """Renew every lease until none is held; a lease that is gone is noted, so that its leader won't store."""
        while True:
            time.sleep(RENEW_SECONDS)
            with self._lock:
                held = [(key, flight) for key, flight in self._open.items() if flight.has_lease]
                if not held:
                    self._keeping = False
                    return
            for key, flight in held:
                if not outlived(partial(self._renew, key, flight), event="flight_not_renewed"):
                    flight.has_lease = False

    def _renew(self, key: str, flight: Flight) -> None:
        renewed = self._on_store(_RENEW, key, flight.token, LEASE_MS)
        flight.has_lease = bool(renewed) and flight.has_lease


flights = Flights()

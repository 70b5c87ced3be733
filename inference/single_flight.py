"""Single flight: identical requests at the same time, on one node or several, cause one upstream call.

Within a process, the first request for a cache key is the leader; the others are followers and wait for it. Between
processes, the leader is the process that holds a lease in the state store (LEASE_MS, renewed while the call runs). The
leaders of other processes look for its answer in the cache, and for its failure beside the lease. If the holder dies,
the lease expires and the next process that looks takes over, within a second. A leader that lost its lease finishes
and is billed, but does not store its answer. Without a shared cache, or while the state store is unavailable, each
process works alone.

A follower waits no longer than its own call may take; then it gets a 504 and makes no call.

The keys of a flight share a hash tag, so that one script can use all of them on a cluster.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog
from django.conf import settings
from redis.exceptions import RedisError

from core.background import PeriodicThread, outlived
from core.errors import ApiError, ContentFiltered, InvalidRequest, UpstreamBusy, UpstreamFailed, UpstreamTimeout
from core.redis.client import state_store
from core.redis.leases import RENEW
from core.redis.scripts import Script, script
from core.redis.wire import Wire
from inference.cache import CachedAnswer, look_up
from inference.upstream.errors import Deadline

#: Milliseconds until a lease that is not renewed expires. The mark that followers wait expires as fast.
LEASE_MS = 900
#: Milliseconds for which a failure is kept for followers: longer than the time between two of their looks.
FAILURE_MS = 5000
#: Milliseconds for which the end of a flight is kept: longer than a process takes from a cache look-up to a lease.
OVER_MS = 2000

_TAKE = script(
    b"""
local token, lease, kept, waited = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local failed, awaited, over = KEYS[1] .. ':failed', KEYS[1] .. ':awaited', KEYS[1] .. ':over'
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= token then
  redis.call('SET', awaited, 1, 'PX', lease)
  return {0}
end
local left = redis.call('PTTL', failed)
if not holder and waited > 0 and left > 0 and kept - left <= waited then
  return {0, redis.call('GET', failed), kept - left}
end
redis.call('SET', KEYS[1], token, 'PX', lease)
redis.call('DEL', failed)
return {1, redis.call('EXISTS', over)}
"""
)
_RELEASE = script(
    b"""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1]) -- first: a Redis that is full refuses what follows
if ARGV[2] ~= '' then
  redis.call('SET', KEYS[1] .. ':failed', ARGV[2], 'PX', ARGV[3])
else
  redis.call('SET', KEYS[1] .. ':over', 1, 'PX', ARGV[4])
end
return 1
"""
)
_AWAITED = script(b"return redis.call('EXISTS', KEYS[1] .. ':awaited')")

#: Failures of a provider that followers in other processes share, by name.
_FAILURES = {each.__name__: each for each in (InvalidRequest, UpstreamFailed, ContentFiltered, UpstreamTimeout)}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """The result of asking for a lease. Neither granted nor with an error: another process holds it."""

    is_granted: bool = False
    #: Whether another flight ended just before, so that its answer may be in the cache.
    is_late: bool = False
    #: How the other flight failed, and when (monotonic seconds; never later than it was).
    error: ApiError | None = None
    failed_at: float = 0.0


class FlightLeases:
    """The leases of this process's flights, each named by the flight's key and held by its token."""

    def take(self, key: str, token: str, *, waited_ms: int) -> Asked | None:
        """Ask for a lease; None while the state store is unavailable.

        If the flight failed within the last `waited_ms` milliseconds, the result has its error. 0: the caller has not
        waited, and gets no error.
        """
        now = time.monotonic()
        answer = self._ask(_TAKE, key, token, LEASE_MS, FAILURE_MS, waited_ms)
        if answer is None:
            return None
        is_granted, *told = answer
        if is_granted:
            return Asked(is_granted=True, is_late=bool(told[0]))
        return Asked(error=_unpacked(told[0]), failed_at=now - told[1] / 1000) if told else Asked()

    def renew_each(self, held: Sequence[tuple[str, str]]) -> list[bool]:
        """Renew leases, given as keys and tokens, in one round trip; False for each that is lost."""
        calls = [(_place(key), (token, LEASE_MS)) for key, token in held]
        answers = self._reach(lambda wire: wire.call_each(RENEW, calls))
        return [False] * len(held) if answers is None else [bool(answer) for answer in answers]

    def release(self, key: str, token: str, error: ApiError | None) -> None:
        """Release a lease, and leave the error, if any, for followers in other processes."""
        self._ask(_RELEASE, key, token, _packed(error) if error else "", FAILURE_MS, OVER_MS)

    def is_awaited(self, key: str) -> bool:
        """Return whether another process waited for this flight within the last LEASE_MS."""
        return bool(self._ask(_AWAITED, key))

    def _ask(self, asked: Script, key: str, *arguments: str | int) -> Any:
        return self._reach(lambda wire: wire.call(asked, _place(key), arguments))

    def _reach(self, ask: Callable[[Wire], Any]) -> Any:
        """Return the state store's answer; None while it is unavailable to the limits, or if this call fails."""
        store = state_store()
        if store.availability.is_away:
            return None
        try:
            return ask(store.wire)
        except RedisError as error:
            log.warning("flight_store_failed", cause=type(error).__name__)
            return None


def _place(key: str) -> str:
    return f"aiapi:flight:{{{key}}}"


def _packed(error: ApiError) -> str:
    told = [type(error).__name__, error.detail, error.param, error.error_code, getattr(error, "retry_after", 0)]
    return json.dumps(told, separators=(",", ":"))


def _unpacked(text: bytes) -> ApiError:
    """Rebuild an error. An unknown type, from another version of the program, becomes UpstreamFailed."""
    name, detail, param, code, retry_after = json.loads(text)
    if name == UpstreamBusy.__name__:
        busy = UpstreamBusy(detail, retry_after=retry_after)
        busy.error_code = code
        return busy
    kind = _FAILURES.get(name, UpstreamFailed)
    return kind(detail, param=param, code=code)


RENEW_SECONDS = 0.3
LOOK_SECONDS = 0.1
#: Seconds between two checks whether a follower's answer is still wanted.
WATCH_SECONDS = 0.5


def _never() -> bool:
    return False


@dataclass(slots=True)
class Wait:
    """A call's wait for a flight: until its own deadline, or until `is_unwanted` returns true."""

    deadline: Deadline
    is_unwanted: Callable[[], bool] = _never
    #: Whether the call follows another now, and whether it ever did.
    follows: bool = False
    has_followed: bool = False
    began: float = field(default_factory=time.monotonic)

    @property
    def waited_ms(self) -> int:
        """Milliseconds since the wait began, rounded up; 0 if the call never followed another."""
        return int((time.monotonic() - self.began) * 1000) + 1 if self.has_followed else 0

    def follow(self) -> None:
        """Note that another call leads."""
        self.follows = self.has_followed = True

    def lasts(self) -> bool:
        """Return whether to continue waiting; raises UpstreamTimeout after the deadline."""
        if self.is_unwanted():
            return False
        if self.deadline.is_over:
            raise UpstreamTimeout
        return True


class Flight:
    """The call for one key in this process. The leader ends it with Flights.leave; followers wait."""

    def __init__(self) -> None:
        self.token = uuid.uuid4().hex
        self.has_lease = False
        self.followers = 0
        self._over = threading.Event()
        self._answer: CachedAnswer | None = None
        self._error: ApiError | None = None
        self._failed_at = 0.0

    def end(self, answer: CachedAnswer | None, error: ApiError | None, failed_at: float | None = None) -> None:
        """Pass the outcome to the followers; an error only to those that waited at `failed_at` (None: now).

        With neither an answer nor an error, another call has to lead.
        """
        self._answer, self._error = answer, error
        self._failed_at = time.monotonic() if failed_at is None else failed_at
        self._over.set()

    def outcome(self, wait: Wait) -> CachedAnswer | None:
        """Wait for an answer; None if another call has to lead, or the answer is no longer wanted.

        Raises the leader's error, or UpstreamTimeout after the deadline.
        """
        # Never wait for an event that is set: if it is about to wake its waiters and the last of them times out first,
        # gevent 26.9 never wakes a greenlet that began to wait meanwhile (its unlink stops the notifier).
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
        self._keeper = PeriodicThread(
            self._renew_all,
            has_work=lambda: bool(self._held()),
            seconds=lambda: RENEW_SECONDS,
            name="flight-keeper",
            event="flights_not_renewed",
        )

    def join(self, key: str, wait: Wait) -> Flight | CachedAnswer | None:
        """Return the answer of another call, or a flight to lead, which the caller must end with `leave`.

        None if the answer is no longer wanted. Raises the leader's error, or UpstreamTimeout after the deadline.
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
        """Return whether the leader still leads and may store its answer; always true if the cache is not shared."""
        return flight.has_lease or not settings.CACHE_URL

    def is_awaited(self, key: str, flight: Flight) -> bool:
        """Return whether followers wait for a flight, in this process or another."""
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
        """Lead in this process and, if no other process has the lease, among all; else wait for the other's outcome."""
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
        """Wait until this process holds the key's lease, another has an outcome, or the answer is no longer wanted.

        Returns the flight, the outcome or None respectively. A flight may have ended between this call's cache look-up
        and its lease, so the cache is read again.
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
        """Renew all leases held, and note lost ones so that their leaders don't store.

        One round trip for all: renewing many one by one would take longer than a lease lasts.
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

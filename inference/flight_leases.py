"""What processes tell each other about a flight, in the state store: who leads, that others wait, how it ended.

The keys of a flight share a hash tag, so that one script sees all of them on a cluster too. While the store is away,
each process is on its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from django.conf import settings
from redis.exceptions import RedisError

from accounts.exceptions import (
    ApiError,
    ContentFiltered,
    InvalidRequest,
    UpstreamBusy,
    UpstreamFailed,
    UpstreamTimeout,
)
from accounts.limits import get_limits
from accounts.limits.redis import redis_client, wire_for
from accounts.limits.scripts import Script, script
from accounts.limits.wire import Wire

#: A lease that nobody renews ends after this, and so does the mark that somebody waits.
LEASE_MS = 900
#: How long a failure is kept for those who waited: longer than any of them goes without a look.
FAILURE_MS = 5000
#: How long it is known that a flight is over: longer than anybody takes from a look into the cache to a lease.
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
_RENEW = script(b"return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0")
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

#: What can go wrong at a provider, and be told to those who waited.
_FAILURES = {each.__name__: each for each in (InvalidRequest, UpstreamFailed, ContentFiltered, UpstreamTimeout)}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """What comes of asking for a lease; neither granted nor with an error: another has it."""

    is_granted: bool = False
    #: Whether another's flight was over just before, so that its answer may be in the cache by now.
    is_late: bool = False
    #: How the other's flight failed, and when (monotonic seconds; never too late by it).
    error: ApiError | None = None
    failed_at: float = 0.0


class FlightLeases:
    """The leases of a process's flights, each named by the flight's key and held by its token."""

    def __init__(self) -> None:
        self._wire: Wire | None = None

    def take(self, key: str, token: str, *, waited_ms: int) -> Asked | None:
        """Ask for a lease; None while the store is away.

        Of a flight that failed while the caller waited (`waited_ms` until now, 0 for nobody), the answer is its error.
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
        """Hold leases, each by its key and token, for longer, in one round trip; False for each that is lost."""
        calls = [(_place(key), (token, LEASE_MS)) for key, token in held]
        answers = self._reach(lambda wire: wire.call_each(_RENEW, calls))
        return [False] * len(held) if answers is None else [bool(answer) for answer in answers]

    def release(self, key: str, token: str, error: ApiError | None) -> None:
        """Give a lease back, and tell those who wait in other processes of an error, where there is one."""
        self._ask(_RELEASE, key, token, _packed(error) if error else "", FAILURE_MS, OVER_MS)

    def is_awaited(self, key: str) -> bool:
        """Say whether another process waited for this flight within the last LEASE_MS."""
        return bool(self._ask(_AWAITED, key))

    def _ask(self, asked: Script, key: str, *arguments: str | int) -> Any:
        return self._reach(lambda wire: wire.call(asked, _place(key), arguments))

    def _reach(self, ask: Callable[[Wire], Any]) -> Any:
        """Ask the state store; None while it is away, as the limits noticed or this very question does."""
        if get_limits().is_degraded:
            return None
        try:
            if self._wire is None:
                self._wire = wire_for(redis_client(settings.REDIS_URL))
            return ask(self._wire)
        except RedisError as error:
            log.warning("flight_store_failed", cause=type(error).__name__)
            return None


def _place(key: str) -> str:
    return f"aiapi:flight:{{{key}}}"


def _packed(error: ApiError) -> str:
    told = [type(error).__name__, error.detail, error.param, error.error_code, getattr(error, "retry_after", 0)]
    return json.dumps(told, separators=(",", ":"))


def _unpacked(text: bytes) -> ApiError:
    """Make an error again; one that only another version of this program knows is a provider's failure."""
    name, detail, param, code, retry_after = json.loads(text)
    if name == UpstreamBusy.__name__:
        busy = UpstreamBusy(detail, retry_after=retry_after)
        busy.error_code = code
        return busy
    kind = _FAILURES.get(name, UpstreamFailed)
    return kind(detail, param=param, code=code)

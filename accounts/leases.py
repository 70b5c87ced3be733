"""Leases in the state store: a name belongs to one holder until it is released, or expires because the holder died.

One thread in each process renews all leases of the process. A holder is identified by a random token of its own. Raises
RedisError while the store is away, without waiting if the limits know of that already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from django.conf import settings

from accounts.limits import ask_state_store
from core.background import PeriodicThread
from core.redis.client import redis_client, wire_for
from core.redis.scripts import script
from core.redis.wire import Wire

#: How long a lease outlives a holder that died, and how often a live holder renews it.
LEASE_MS = 15_000
RENEW_SECONDS = 4.0

#: Taking a lease again with the same token succeeds: the reply to the first attempt may have been lost.
_TAKE = script(
    b"""
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
)
RENEW = script(b"return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0")
_RELEASE = script(b"return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0")

T = TypeVar("T")


class Leases:
    """The leases that this process holds, as tokens by name."""

    def __init__(self) -> None:
        self._held: dict[str, str] = {}
        self._wire: Wire | None = None
        self._renewer = PeriodicThread(
            self._renew_all,
            has_work=lambda: bool(self._held),
            seconds=lambda: RENEW_SECONDS,
            name="lease-renewer",
            event="leases_not_renewed",
        )

    def take(self, name: str, token: str) -> bool:
        """Take a lease; return False while another holder has it."""
        if not self._ask(lambda wire: wire.call(_TAKE, _place(name), (token, LEASE_MS))):
            return False
        self._held[name] = token
        self._renewer.begin()
        return True

    def release(self, name: str, token: str) -> None:
        """Release a lease, unless another holder has it by now."""
        if self._held.get(name) == token:
            del self._held[name]
        self._ask(lambda wire: wire.call(_RELEASE, _place(name), (token,)))

    def forget(self) -> None:
        """Drop all leases without releasing them; they expire in the store."""
        self._held.clear()
        self._wire = None

    def _renew_all(self) -> None:
        calls = [(_place(name), (token, LEASE_MS)) for name, token in list(self._held.items())]
        if calls:
            self._ask(lambda wire: wire.call_each(RENEW, calls))

    def _ask(self, call: Callable[[Wire], T]) -> T:
        wire = self._wire = self._wire or wire_for(redis_client(settings.REDIS_URL))
        return ask_state_store(lambda: call(wire))


leases = Leases()


def _place(name: str) -> str:
    return f"aiapi:lease:{{{name}}}"

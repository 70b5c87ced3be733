"""Leases in the state store: a process keeps one until it releases it; if the process dies, the lease expires.

One thread in each process renews all that the process holds: named leases (`leases`), and the limits' reservations.
A lease is renewed each third of its length; most calls end before, and cost no renewal.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from core.background import PeriodicThread, run_step
from core.redis.client import state_store
from core.redis.wire import script

RENEWALS_A_LEASE = 3
#: Seconds between two looks at what is due.
LOOK_SECONDS = 0.1
#: Seconds that a named lease outlives a holder that died.
LEASE_SECONDS = 15.0

#: Taking a lease again with the same token succeeds: the reply to the first attempt may have been lost.
_TAKE = script(
    b"""
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
)
_RENEW = script(b"return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2]) or 0")
_RELEASE = script(b"return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1]) or 0")


class Renewable(Protocol):
    """Leases of one kind: how long they last, and how those of one shard are renewed in one step."""

    @property
    def lease_seconds(self) -> float:
        """Seconds until a lease ends that is not renewed."""

    def renew(self, shard: int, names: list[str], /) -> object:
        """Renew leases. May raise anything; what was not renewed is tried again."""


@dataclass(slots=True)
class _Held:
    leases: Renewable
    shard: int
    renewed_at: float


class LeaseRenewer:
    """What this process holds, by name, and the thread that renews it. `clock` returns monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self._thread = PeriodicThread(
            self.renew_due,
            has_work=lambda: bool(self._held),
            seconds=lambda: LOOK_SECONDS,
            name="lease-renewer",
            event="leases_not_renewed",
        )

    def hold(self, leases: Renewable, shard: int, name: str) -> None:
        """Renew a lease until `let_go`."""
        self._held[name] = _Held(leases, shard, self._clock())
        self._thread.begin()

    def let_go(self, name: str) -> None:
        """Renew a lease no more."""
        self._held.pop(name, None)

    @contextmanager
    def held(self, leases: Renewable, shard: int, name: str) -> Iterator[None]:
        """Keep a lease alive while the block runs."""
        self.hold(leases, shard, name)
        try:
            yield
        finally:
            self.let_go(name)

    def renew_due(self) -> None:
        """Renew what has not been renewed for a third of its lease, those of a shard in one step."""
        now = self._clock()
        due: dict[tuple[Renewable, int], list[str]] = defaultdict(list)
        for name, held in list(self._held.items()):
            if now - held.renewed_at >= held.leases.lease_seconds / RENEWALS_A_LEASE:
                held.renewed_at = now
                due[held.leases, held.shard].append(name)
        for (leases, shard), names in due.items():
            run_step(partial(leases.renew, shard, names), event="leases_not_renewed")


renewer = LeaseRenewer()


class Leases:
    """The named leases that this process holds, as tokens by name. A random token identifies a holder.

    Raises RedisError while the store is down, without waiting if that is known already.
    """

    def __init__(self, lease_seconds: float = LEASE_SECONDS) -> None:
        self.lease_seconds = lease_seconds
        self._tokens: dict[str, str] = {}

    def take(self, name: str, token: str) -> bool:
        """Take a lease; return False while another holder has it."""
        if not state_store().call(_TAKE, _key(name), (token, self._milliseconds)):
            return False
        self._tokens[name] = token
        renewer.hold(self, 0, name)
        return True

    def release(self, name: str, token: str) -> None:
        """Release a lease, unless another holder has it by now."""
        if self._tokens.get(name) == token:
            del self._tokens[name]
            renewer.let_go(name)
        state_store().call(_RELEASE, _key(name), (token,))

    def renew(self, shard: int, names: list[str]) -> None:
        """Renew leases, in one round trip a node."""
        tokens = {name: token for name in names if (token := self._tokens.get(name))}
        calls = [(_key(name), (token, self._milliseconds)) for name, token in tokens.items()]
        state_store().call_each(_RENEW, calls)

    def forget(self) -> None:
        """Drop all leases without releasing them; they end in the store."""
        for name in self._tokens:
            renewer.let_go(name)
        self._tokens.clear()

    @property
    def _milliseconds(self) -> int:
        return int(self.lease_seconds * 1000)


leases = Leases()


def _key(name: str) -> str:
    return f"aiapi:lease:{{{name}}}"

"""Limits of what all accounts share, such as a provider: kept for all processes, apart from any account's own.

`enter` counts a request, takes a slot and holds tokens, all or nothing; the Entry's `leave` gives the slot back and
replaces what was held by what was used. There are no ledgers and no records: nobody is billed here.

Each subject has a hash tag of its own, and the leases of those who died run out: what they held counts as used then.
While Redis is away, a process keeps the limits for itself.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accounts.limits import get_limits
from accounts.limits.failover import FailoverBackend
from accounts.limits.leases import LeaseKeeper
from accounts.limits.redis import RedisBackend
from accounts.limits.scripts import load
from accounts.limits.types import SECOND, LimitName, Refusal, Subject, Unavailable, binding
from core.redis.wire import Argument, Wire

logger = logging.getLogger(__name__)

LIMITS = (LimitName.REQUESTS_PER_MINUTE, LimitName.TOKENS_PER_MINUTE, LimitName.CONCURRENT_REQUESTS)


class Entry:
    """A place that was taken, with the tokens that it holds. Leaving it again does nothing; `leave` None: ever."""

    def __init__(self, tokens: int, leave: Callable[[int], None] | None) -> None:
        self._tokens = tokens
        self._leave = leave

    def leave(self, used: int | None = None) -> None:
        """Give the slot back, and count the tokens that were used: all that it holds where nobody knows."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave(self._tokens if used is None else used)


class RedisGates:
    """The limits of all processes, by Redis's clock (or the injected one). Raises redis.RedisError."""

    def __init__(self, wire: Wire, *, lease_seconds: int, clock: Callable[[], int] | None = None) -> None:
        self._wire = wire
        self._lease = lease_seconds * SECOND
        self._clock = clock

    def enter(self, subject: Subject, operation: str, tokens: int) -> Entry | Refusal:
        """Enter, among all processes."""
        limits = [getattr(subject.limits, name) for name in LIMITS]
        numbers = (-1 if limit is None else limit for limit in limits)
        kind, *answer = self._call("enter", subject.name, [operation, self._lease, subject.name, tokens, *numbers])
        if kind == b"ok":
            return Entry(tokens, lambda used: self.leave(subject.name, operation, used))
        at, *values = answer
        return binding(
            Refusal(LIMITS[number - 1], subject, used, limits[number - 1], at, reset, impossible=bool(impossible))
            for number, used, reset, impossible in zip(*[iter(values)] * 4, strict=True)
        )

    def leave(self, subject: str, operation: str, used: int) -> None:
        """Leave, if the lease has not run out."""
        self._call("leave", subject, [operation, subject, used])

    def renew(self, subject: str, operations: Sequence[str]) -> None:
        """Prolong leases to a whole lease from now."""
        self._call("renew", subject, [self._lease, *operations])

    def _call(self, script: str, subject: str, arguments: Sequence[Argument]) -> Any:
        now = "" if self._clock is None else self._clock()
        return self._wire.call(load(script), gate_prefix(subject), [now, *arguments])


def gate_prefix(subject: str) -> str:
    """Give the prefix of all keys of a shared thing (`provider:17`), with a hash tag of its own."""
    return f"aiapi:{{{subject}}}:"


class Gates:
    """Redis, and this process where Redis is away; whether it is, the limits' own breaker says."""

    def __init__(self, limits: FailoverBackend, shared: RedisGates) -> None:
        self._limits = limits
        self._shared = shared

    def enter(self, subject: Subject, operation: str, tokens: int) -> Entry | Refusal:
        """Count a request, take a slot and hold tokens; or nothing, with the refusal that binds longest.

        In this process alone while Redis is away: a reply that was lost leaves a lease that runs out.
        """
        try:
            return self._limits.either(
                lambda: self._enter_shared(subject, operation, tokens), lambda: self._enter_local(subject, tokens)
            )
        except Unavailable:
            return self._enter_local(subject, tokens)

    def _enter_local(self, subject: Subject, tokens: int) -> Entry | Refusal:
        local = self._limits.local
        refusal = local.enter(subject, tokens)
        return refusal or Entry(tokens, lambda used: local.leave(subject, tokens, used))

    def _enter_shared(self, subject: Subject, operation: str, tokens: int) -> Entry | Refusal:
        answer = self._shared.enter(subject, operation, tokens)
        if isinstance(answer, Refusal):
            return answer
        lease = keeper.hold((self._shared, subject.name), operation)
        return Entry(tokens, lambda used: self._leave_shared(subject, lease, used))

    def _leave_shared(self, subject: Subject, operation: str, used: int) -> None:
        keeper.let_go(operation)
        try:
            self._limits.either(lambda: self._shared.leave(subject.name, operation, used), lambda: None)
        except Unavailable:
            logger.warning("limits: the slot of %s at %s is freed when its lease ends", operation, subject.name)


def _renew(owner: tuple[RedisGates, str], operations: list[str]) -> None:
    gates, subject = owner
    gates.renew(subject, operations)


keeper: LeaseKeeper[tuple[RedisGates, str]] = LeaseKeeper(renew=_renew)


@dataclass(slots=True)
class _Built:
    limits: FailoverBackend | None = None
    gates: Gates | None = None


_built = _Built()
_lock = threading.Lock()


def get_gates() -> Gates:
    """Give the process's gates, over the same store as its limits."""
    limits = get_limits()
    with _lock:
        if _built.gates is None or _built.limits is not limits:
            assert isinstance(limits.primary, RedisBackend)  # noqa: S101  (tells its type)
            shared = RedisGates(limits.primary.wire, lease_seconds=limits.lease_seconds)
            _built.limits, _built.gates = limits, Gates(limits, shared)
        return _built.gates

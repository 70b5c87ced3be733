"""Limits of what all accounts share, such as a provider: kept for all processes, apart from any account's own.

`enter` counts a request, takes a slot and holds tokens, all or nothing; the Entry's `leave` gives the slot back and
replaces what was held by what was used. There are no ledgers and no records: nobody is billed here.

With Redis each subject has a hash tag of its own, and the leases of those who died run out: what they held counts as
used then. While Redis is away, and in the embedded mode, a process keeps the limits for itself.
"""

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accounts.limits import get_limits
from accounts.limits.contract import SECOND, LimitBackend, LimitName, Refusal, Subject, Unavailable, binding
from accounts.limits.failover import FailoverBackend
from accounts.limits.leases import LeaseKeeper
from accounts.limits.memory import wall_clock
from accounts.limits.memory_subject import SubjectState, requests_refusal
from accounts.limits.redis import RedisBackend
from accounts.limits.scripts import load
from accounts.limits.wire import Argument, Wire

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


class Gates(ABC):
    """The limits of all shared things, in one place. Safe to call from any thread or greenlet."""

    @abstractmethod
    def enter(self, subject: Subject, operation: str, tokens: int) -> Entry | Refusal:
        """Count a request, take a slot and hold tokens; or nothing, with the refusal that binds longest."""


class ProcessGates(Gates):
    """The limits as one process keeps them. `clock` gives µs since the epoch."""

    def __init__(self, clock: Callable[[], int] = wall_clock) -> None:
        self._clock = clock
        self._states: dict[str, SubjectState] = {}
        self._lock = threading.Lock()

    def enter(self, subject: Subject, operation: str, tokens: int) -> Entry | Refusal:
        """Enter, among the threads of this process."""
        with self._lock:
            state = self._states.setdefault(subject.name, SubjectState())
            now = max(now := self._clock(), state.latest_request(now))
            refusals = _refusals(subject, state, tokens, now)
            if refusals:
                return binding(refusals)
            if subject.limits.requests_per_minute is not None:
                state.requests.append(now)
            state.slots += 1
            state.open_tokens += tokens
        return Entry(tokens, lambda used: self._leave(state, tokens, used))

    def _leave(self, state: SubjectState, held: int, used: int) -> None:
        with self._lock:
            state.slots -= 1
            state.open_tokens -= held
            if used:
                state.add_tokens(self._clock(), used)


def _refusals(subject: Subject, state: SubjectState, tokens: int, now: int) -> list[Refusal]:
    limits, in_window = subject.limits, state.tokens_used(now)
    full = requests_refusal(subject, state, now)
    refusals = [] if full is None else [full]
    if (most := limits.tokens_per_minute) is not None and in_window + tokens > most:
        free = state.tokens_free_at(now, in_window + tokens - most)
        refusals.append(Refusal(LIMITS[1], subject, in_window, most, now, free, impossible=tokens > most))
    if (most := limits.concurrent_requests) is not None and state.slots >= most:
        refusals.append(Refusal(LIMITS[2], subject, state.slots, most, now, now + SECOND))
    return refusals


class RedisGates(Gates):
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


class FailoverGates(Gates):
    """Redis, and this process where Redis is away; whether it is, the limits' own breaker says."""

    def __init__(self, limits: FailoverBackend, shared: RedisGates, alone: ProcessGates) -> None:
        self._limits = limits
        self._shared = shared
        self._alone = alone

    def enter(self, subject: Subject, operation: str, tokens: int) -> Entry | Refusal:
        """Enter, in this process alone while Redis is away: a reply that was lost leaves a lease that runs out."""

        def alone() -> Entry | Refusal:
            return self._alone.enter(subject, operation, tokens)

        try:
            entered = self._limits.either(lambda: self._enter_shared(subject, operation, tokens), alone)
        except Unavailable:
            entered = alone()
        return entered

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


keeper: LeaseKeeper[tuple[RedisGates, str]] = LeaseKeeper(renew=_renew, tend=lambda: None)


@dataclass(slots=True)
class _Built:
    limits: LimitBackend | None = None
    gates: Gates | None = None


_built = _Built()
_lock = threading.Lock()


def get_gates() -> Gates:
    """Give the process's gates, over the same store as its limits."""
    limits = get_limits()
    with _lock:
        if _built.gates is None or _built.limits is not limits:
            _built.limits, _built.gates = limits, _build(limits)
        return _built.gates


def _build(limits: LimitBackend) -> Gates:
    if isinstance(limits, FailoverBackend) and isinstance(limits.primary, RedisBackend):
        shared = RedisGates(limits.primary.wire, lease_seconds=limits.lease_seconds)
        return FailoverGates(limits, shared, ProcessGates())
    return ProcessGates(limits.now)

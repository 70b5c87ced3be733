"""The failure policy of the limits: what happens while Redis is away, in one place.

- Request rates, token rates and slots are enforced per process (see local). A call under a budget raises
  LimitsUnavailable, because only Redis knows what is left of the budget. Cache hits reserve nothing and are served. A
  provider's own limits are enforced per process as well, even where Redis answers but fails: no caller is refused
  because of that.
- A call that fails although Redis answers probes raises LimitsUnavailable. core.redis.availability decides when Redis
  counts as away.
- Settlements that could not reach Redis wait in a bounded queue, while their records go to the database directly. A
  full queue drops the oldest, which is counted and logged. Refusals are counted per process. One that Redis may have
  counted already waits in the queue, so that it is recorded only once.
- While settlements or counts wait, one thread tries each second to make them; calls never pay for that.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from accounts.limits.local import LocalLimiter, wall_clock
from accounts.limits.records import UsageRecord
from accounts.limits.redis import HEARTBEAT_SECONDS, RedisBackend
from accounts.limits.refusal_counts import RefusalCounts
from accounts.limits.types import (
    MAX_REAPED,
    MINUTE,
    NO_ACCOUNT,
    Admission,
    Amount,
    Bound,
    FlightClaim,
    InFlight,
    LimitSet,
    LimitsUnavailable,
    Refusal,
    RefusalGroup,
    Reserved,
    Settlement,
    SubjectUsage,
)
from core.background import PeriodicThread, Start
from core.redis.availability import Availability, StoreAway

logger = logging.getLogger(__name__)

CAPACITY = 20_000
MOST_FAILURES = 3  # of settlements, before the rest waits for the next attempt
SETTLED_TTL = 60 * MINUTE  # µs; how long Redis remembers that an operation was settled: SETTLED_TTL in prelude.lua


@dataclass(frozen=True, slots=True)
class Pending:
    """One settlement that has still to be made. It has a record only if that could not be stored in another way.

    `maybe_done` means that it was sent before and only the reply is missing. A `group` makes it a refusal, which is
    emitted instead of settled. Times are in µs.
    """

    scope: LimitSet
    operation: str
    admitted_at: int
    used: Amount
    since: int
    recorded_at: int | None = None
    record: UsageRecord | None = None
    maybe_done: bool = False
    group: RefusalGroup | None = None
    flight_error: str = ""

    def settle(self, backend: RedisBackend) -> Settlement:
        """Settle on the backend; raises the backend's errors."""
        return backend.settle(
            self.scope,
            self.operation,
            admitted_at=self.admitted_at,
            used=self.used,
            record=self.record,
            recorded_at=self.recorded_at,
            flight_error=self.flight_error,
        )

    def is_ambiguous(self, now: int) -> bool:
        """Return whether Redis may have forgotten that this was settled already: settling again could charge twice."""
        return self.maybe_done and self.record is None and now - self.since >= SETTLED_TTL


class PendingSettlements:
    """A bounded queue of settlements, one for each operation, oldest first. Thread-safe."""

    def __init__(self, clock: Callable[[], int], capacity: int = CAPACITY) -> None:
        self._clock = clock
        self._capacity = capacity
        self._lock = threading.Lock()
        self._queue: OrderedDict[str, Pending] = OrderedDict()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, pending: Pending) -> None:
        """Queue a settlement. It replaces an earlier one of its operation; a full queue drops its oldest."""
        with self._lock:
            self._queue[pending.operation] = pending
            overflow = self._queue.popitem(last=False)[0] if len(self._queue) > self._capacity else None
            self.dropped += overflow is not None
        if overflow is not None:
            logger.error("limits: too many settlements wait for Redis, dropped that of %s", overflow)

    def flush(self, backend: RedisBackend) -> bool:
        """Make the settlements in the order of the queue. Return whether none is left.

        One that fails goes to the end, so that it does not hold up the others; after MOST_FAILURES the rest waits.
        """
        failures = 0
        while failures < MOST_FAILURES and (pending := self._oldest()):
            if pending.is_ambiguous(self._clock()):
                self.dropped += 1
                logger.error("limits: dropped the settlement of %s, which may have been made before", pending.operation)
            else:
                try:
                    if pending.group is not None and pending.record is not None:
                        backend.emit(pending.scope.account_id, pending.operation, pending.record, group=pending.group)
                    else:
                        pending.settle(backend)
                except Exception:
                    logger.exception("limits: a settlement has to wait: %s", pending.operation)
                    failures += 1
                    self._dequeue(pending, keep=True)
                    continue
            self._dequeue(pending)
        return not self._queue

    def _oldest(self) -> Pending | None:
        with self._lock:
            return next(iter(self._queue.values()), None)

    def _dequeue(self, pending: Pending, *, keep: bool = False) -> None:
        """Remove a settlement (`keep`: move it to the end), unless another of its operation has replaced it."""
        with self._lock:
            if self._queue.get(pending.operation) is not pending:
                return
            if keep:
                self._queue.move_to_end(pending.operation)
            else:
                del self._queue[pending.operation]


T = TypeVar("T")

REPAIR_INTERVAL = 1.0  # seconds between attempts to make what waits for Redis
RETRY_AFTER = 5  # seconds; Redis is in use again sooner than that after its recovery
HELD_CAPACITY = 50_000


class FailoverBackend:
    """Redis, or this process alone while Redis is away. RedisBackend documents what each method guarantees.

    `sink` stores a record in the database and raises if it can't. `start` starts the repair thread; tests pass one that
    does nothing, and call `repair_once` themselves.
    """

    def __init__(
        self,
        primary: RedisBackend,
        *,
        availability: Availability,
        sink: Callable[[UsageRecord], None],
        clock: Callable[[], int] = wall_clock,
        start: Start | None = None,
    ) -> None:
        self.lease_seconds = primary.lease_seconds
        self.primary = primary
        self.local = LocalLimiter(clock)
        self.availability = availability
        self.pending = PendingSettlements(clock)
        self.refusal_counts = RefusalCounts(sink)
        self._sink = sink
        self._clock = clock
        self._repairer = PeriodicThread(
            self.repair_once,
            has_work=lambda: bool(self.pending or self.refusal_counts),
            seconds=lambda: REPAIR_INTERVAL,
            name="limits-repairer",
            event="limits_not_mended",
            start=start,
        )
        self._held: OrderedDict[str, Amount] = OrderedDict()
        #: Shard and key of the flights that calls of this process lead, by operation.
        self._flights: dict[str, tuple[int, str]] = {}
        self._heart = PeriodicThread(
            self._beat,
            has_work=lambda: bool(self._flights),
            seconds=lambda: HEARTBEAT_SECONDS,
            name="flight-heartbeat",
            event="flights_not_renewed",
            start=start,
        )

    @property
    def is_degraded(self) -> bool:
        """Whether Redis is away."""
        return self.availability.is_away

    def now(self) -> int:
        """Return the time (µs), by this machine's clock while Redis is away."""
        return self.peek(LimitSet(NO_ACCOUNT, ())).at

    def admit(self, scope: LimitSet, operation: str) -> Admission:
        """Count one request, in this process alone while Redis is away."""
        try:
            return self._on_primary(lambda: self.primary.admit(scope, operation))
        except StoreAway:
            return self.local.admit(scope)

    def peek(self, scope: LimitSet) -> Admission:
        """Return what admit would return."""
        try:
            return self._on_primary(lambda: self.primary.peek(scope))
        except StoreAway:
            return self.local.admit(scope, counts=False)

    def reserve(
        self,
        scope: LimitSet,
        operation: str,
        *,
        admitted_at: int,
        bound: Bound,
        draft: UsageRecord | None,
        attempt: int = 1,
        flight: FlightClaim | None = None,
    ) -> Reserved | Refusal | InFlight:
        """Reserve; while Redis is away in this process alone, without a flight.

        A call under a budget then raises LimitsUnavailable.
        """
        try:
            answer = self._on_primary(
                lambda: self.primary.reserve(
                    scope,
                    operation,
                    admitted_at=admitted_at,
                    bound=bound,
                    draft=draft,
                    attempt=attempt,
                    flight=flight,
                )
            )
        except LimitsUnavailable:
            if scope.is_provider:  # what Redis may have reserved all the same ends with its lease
                return self.local.reserve(scope, operation, bound=bound, attempt=attempt)
            self._release_later(scope, operation, admitted_at)
            raise
        except StoreAway as away:
            if scope.has_budget:
                if away.sent:
                    self._release_later(scope, operation, admitted_at)
                raise LimitsUnavailable(retry_after=RETRY_AFTER) from away
            return self.local.reserve(scope, operation, bound=bound, attempt=attempt)
        if isinstance(answer, Reserved):
            self._held[operation] = answer.held
            if len(self._held) > HELD_CAPACITY:
                self._held.popitem(last=False)
            if flight is not None and answer.leads_flight:
                self._flights[operation] = (scope.shard, flight.key)
                self._heart.begin()
        return answer

    def leads_flight(self, operation: str) -> bool:
        """Return whether an open call leads its flight, as far as this process knows: it may have been taken over."""
        return operation in self._flights

    def is_awaited(self, operation: str) -> bool:
        """Return whether a call in another process waits for the flight of this one; False while Redis is away."""
        flight = self._flights.get(operation)
        try:
            return flight is not None and self._on_primary(lambda: self.primary.is_awaited(*flight))
        except (StoreAway, LimitsUnavailable):
            return False

    def renew(self, shard: int, operations: Iterable[str]) -> frozenset[str]:
        """Extend leases. While Redis is away, its operations count as open; a late settle corrects that."""
        names = frozenset(operations)
        alone = frozenset(filter(self.local.holds, names))
        try:
            return alone | self._on_primary(lambda: self.primary.renew(shard, names - alone))
        except (StoreAway, LimitsUnavailable):
            return names

    def settle(
        self,
        scope: LimitSet,
        operation: str,
        *,
        admitted_at: int,
        used: Amount,
        record: UsageRecord | None,
        flight_error: str = "",
    ) -> Settlement:
        """Settle. While Redis is away or fails, the settlement waits for it; the record does not."""
        held = self._held.pop(operation, None)
        self._flights.pop(operation, None)
        pending = Pending(scope, operation, admitted_at, used, self._clock(), record=record, flight_error=flight_error)
        settlement = self.local.settle(operation, used)
        if settlement is not None:
            if not scope.is_provider:
                self._settle_later(pending, overrun=settlement.overrun, sent=False)
            return settlement
        try:
            return self._on_primary(lambda: pending.settle(self.primary))
        except (StoreAway, LimitsUnavailable) as error:
            sent = not isinstance(error, StoreAway) or error.sent
        except Exception:
            logger.exception("limits: the settlement of %s has to wait", operation)  # the seeder has no database
            sent = False
        overrun = held is not None and (used.tokens > held.tokens or used.cost > held.cost)
        self._settle_later(pending, overrun=overrun, sent=sent)
        return Settlement(used, overrun)

    def emit(self, account_id: int, operation: str, record: UsageRecord, *, group: RefusalGroup | None = None) -> bool:
        """Emit a record; while Redis is away, to the database."""
        try:
            return self._on_primary(lambda: self.primary.emit(account_id, operation, record, group=group))
        except (StoreAway, LimitsUnavailable) as error:
            now = self._clock()
            pending = Pending(LimitSet(account_id, ()), operation, 0, Amount(), now, record=record, group=group)
            if group is None:
                if not self._stored(replace(record, id=operation)):
                    self._keep(pending)
            elif _may_have_arrived(error):
                self._keep(pending)
            else:
                self.refusal_counts.add(group, operation, record, now)
                if self.refusal_counts:
                    self._repairer.begin()
            return True

    def reap(self, shard: int, *, at_most: int = MAX_REAPED) -> int:
        """Charge expired leases; while Redis is away none, they are charged after its return."""
        try:
            return self._on_primary(lambda: self.primary.reap(shard, at_most=at_most))
        except StoreAway:
            return 0

    def usage(self, scope: LimitSet, month: int | None = None) -> tuple[SubjectUsage, ...]:
        """Return what each subject uses; raises LimitsUnavailable while Redis is away."""
        try:
            return self._on_primary(lambda: self.primary.usage(scope, month))
        except StoreAway as away:
            raise LimitsUnavailable(retry_after=RETRY_AFTER) from away

    def usages(self, scopes: Sequence[LimitSet], month: int | None = None) -> list[tuple[SubjectUsage, ...]]:
        """Return the usage of many scopes; raises LimitsUnavailable while Redis is away."""
        try:
            return self._on_primary(lambda: self.primary.usages(scopes, month))
        except StoreAway as away:
            raise LimitsUnavailable(retry_after=RETRY_AFTER) from away

    def repair_once(self) -> bool:
        """Probe Redis, and make the waiting settlements; return whether nothing is left to repair."""
        stored = self.refusal_counts.flush()
        return self.availability.try_close() and self.pending.flush(self.primary) and stored

    def end(self) -> None:
        """Stop the repair thread of a backend that is being replaced; waiting settlements are dropped."""
        self._repairer.end()
        self._heart.end()

    def _beat(self) -> None:
        """Show that this process lives, and drop the flights that others have taken over."""
        known = dict(self._flights)
        with suppress(StoreAway, LimitsUnavailable):  # the next beat finds out
            for operation in known.keys() - self._on_primary(lambda: self.primary.keep_flights(known)):
                self._flights.pop(operation, None)

    def _on_primary(self, call: Callable[[], T]) -> T:
        """Make a call on Redis. Raises StoreAway, or LimitsUnavailable if Redis is there but the call fails."""
        try:
            return self.availability.ask(call)
        except StoreAway:
            raise
        except RedisError as error:
            logger.error("limits: Redis answers the probe, but not the call: %s", error)
            raise LimitsUnavailable(retry_after=1) from error

    def _release_later(self, scope: LimitSet, operation: str, admitted_at: int) -> None:
        """Queue the release of what Redis may have reserved for a call that was then refused."""
        now = self._clock()
        self._keep(Pending(scope, operation, admitted_at, Amount(), now, recorded_at=now, maybe_done=True))

    def _settle_later(self, pending: Pending, *, overrun: bool, sent: bool) -> None:
        """Store the record directly and queue the settlement; if storing failed, with the record in it."""
        record = pending.record
        if record is not None and self._stored(replace(record, id=pending.operation, is_overrun=overrun)):
            pending = replace(pending, record=None, recorded_at=self._clock())
        self._keep(replace(pending, maybe_done=sent))

    def _stored(self, record: UsageRecord) -> bool:
        try:
            self._sink(record)
        except Exception:
            logger.exception("limits: the record of %s waits for Redis and the database", record.id)
            return False
        return True

    def _keep(self, pending: Pending) -> None:
        self.pending.add(pending)
        self._repairer.begin()


def _may_have_arrived(error: StoreAway | LimitsUnavailable) -> bool:
    """Return whether Redis may have executed the call that got no reply."""
    if isinstance(error, StoreAway):
        return error.sent
    return isinstance(error.__cause__, RedisConnectionError | RedisTimeoutError)

"""The limits: one Lua script for each step, the seeding of missing ledgers, and what happens while Redis is down.

They are exact for any number of processes. A ledger that Redis lost, or never had, is seeded from the database before
anything is taken from it; if several processes seed the same one, the first wins.

Failure policy:
- While Redis is down, request rates, token rates and slots are enforced per process (see local). A call under a budget
  raises LimitsUnavailable, because only Redis knows what is left of the budget. Cache hits reserve nothing and are
  served. A provider's own limits are enforced per process as well, even where Redis answers but fails: no caller is
  refused because of that.
- A call that fails although Redis answers probes raises LimitsUnavailable. core.redis.availability decides when Redis
  counts as down.
- Settlements that could not reach Redis wait in a bounded queue, while their records go to the database directly. A
  full queue drops the oldest, which is counted and logged. Refusals are counted per process. One that Redis may have
  counted already waits in the queue, so that it is recorded only once.
- While settlements or counts wait, one thread tries each second to make them; calls never pay for that.
"""

import logging
import threading
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from accounts.limits import scripts
from accounts.limits.local import LocalLimiter, wall_clock
from accounts.limits.pending import Pending, PendingSettlements
from accounts.limits.records import UsageRecord
from accounts.limits.refusal_counts import RefusalCounts
from accounts.limits.scripts import NO_MONTH, LedgerMissing, load, prefix_of
from accounts.limits.types import (
    MAX_REAPED,
    MAX_REAPED_BY_RESERVE,
    MILLION,
    NO_ACCOUNT,
    REFUSALS_A_MINUTE,
    SECOND,
    SHARDS,
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
    Subject,
    SubjectUsage,
)
from core.background import PeriodicThread, Start
from core.database import query_promptly
from core.outage import Outage
from core.redis.availability import StoreAway
from core.redis.client import StateStore
from core.redis.wire import Argument, Call
from core.times import DAY, month_end, month_of

logger = logging.getLogger(__name__)

T = TypeVar("T")
Seeder = Callable[[Sequence[Subject], int], Mapping[Subject, Amount]]
"""Returns what subjects have settled in a month (YYYYMM), from the database. May raise database errors."""
Sink = Callable[[UsageRecord], None]
"""Stores a record in the database, one row for each id with the highest revision; raises if it can't."""

LEDGER_KEPT = 45 * DAY * SECOND  # after the end of its month, for late settles and reports
HOLDS_RESERVATION = -1  # what refuse.lua returns for an operation that holds a reservation
#: Seconds between two signs of life of a process that leads flights: HEARTBEAT_TTL in prelude.lua allows three.
HEARTBEAT_SECONDS = 0.3
REPAIR_INTERVAL = 1.0  # seconds between attempts to make what waits for Redis
RETRY_AFTER = 5  # seconds; Redis is in use again sooner than that after its recovery
HELD_CAPACITY = 50_000


class LimitBackend:
    """The limits of all processes, kept in Redis; while that is down, those of this process alone.

    All methods are safe to call from any thread or greenlet. A `clock` (µs) replaces Redis's and this machine's in
    tests. `start` starts the background threads; tests pass one that does nothing, and call `repair_once` themselves.
    """

    def __init__(
        self,
        store: StateStore,
        *,
        seeder: Seeder,
        sink: Sink,
        lease_seconds: int = 20,
        clock: Callable[[], int] | None = None,
        start: Start | None = None,
    ) -> None:
        self.store = store
        self.seeder = seeder
        self.lease_seconds = lease_seconds
        self.process = uuid.uuid4().hex
        self._sink = sink
        self._store_clock = clock
        self._clock = clock or wall_clock
        self._seeding = [threading.Lock() for _ in range(SHARDS)]
        self._seeding_outage = Outage()  # of its own: one account's slow sum must not fail the look-ups of keys
        self.local = LocalLimiter(self._clock)
        self.pending = PendingSettlements(self._clock)
        self.refusal_counts = RefusalCounts(sink)
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
        """Whether Redis is down."""
        return self.store.is_away

    def now(self) -> int:
        """Return the time (µs), by this machine's clock while Redis is down."""
        return self.peek(LimitSet(NO_ACCOUNT, ())).at

    def admit(self, scope: LimitSet, operation: str, *, counts: bool = True) -> Admission:
        """Count one request against all subjects, or against none if any of them is at its limit.

        Admitting the same operation again within two minutes does not count again. Without `counts`, only check.
        """
        arguments = [operation, int(counts), *scripts.admit_arguments(scope)]
        try:
            return scripts.admission(scope, self._call("admit", scope.shard, arguments))
        except StoreAway:
            return self.local.admit(scope, counts=counts)

    def peek(self, scope: LimitSet) -> Admission:
        """Return what admit would return now, without counting."""
        return self.admit(scope, "", counts=False)

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
        """Take one slot and the bound from all subjects, or nothing from any of them.

        Grants the largest output that fits, from `bound.least_output` to `bound.output_tokens`. Budgets are those of
        the month of `admitted_at`. The `draft` is the usage record to emit if the lease expires; None for a provider. A
        call that costs nothing is not refused by a budget in money, even if that is overspent. A higher `attempt` of an
        open operation adds its bound to what is held and takes no second slot: for a retry after a try that may have
        been billed. Repeating an attempt changes nothing. Raises OperationClosed if the operation is no longer open,
        LimitsUnavailable, and errors of the seeder.

        With a `flight`, an identical call that is in flight in a process that lives, or that ended since, decides
        before the limits: nothing is taken. Else a grant of the whole output makes this call the flight's leader. The
        flight of a process that died goes to the next that asks. There are no flights while Redis is down.
        """
        month = NO_MONTH if scope.is_provider else month_of(admitted_at)
        arguments: list[Argument] = [
            operation, self.lease_seconds * SECOND, attempt, month, month_end(month) if month else 0,
            bound.prompt.tokens, bound.prompt.cost, bound.output_tokens, bound.least_output, bound.step,
            *divmod(bound.output_price, MILLION), "" if draft is None else draft.as_json(), MAX_REAPED_BY_RESERVE,
            *((flight.key, flight.since) if flight else ("", 0)), self.process, *scripts.reserve_arguments(scope),
        ]  # fmt: skip

        def run() -> Reserved | Refusal | InFlight | LedgerMissing:
            return scripts.reservation(scope, operation, month, self._call("reserve", scope.shard, arguments))

        try:
            answer: Reserved | Refusal | InFlight = self._seeded(scope, run)
        except LimitsUnavailable:
            if scope.is_provider:  # what Redis may have reserved all the same ends with its lease
                return self.local.reserve(scope, operation, bound=bound, attempt=attempt)
            self._release_later(scope, operation, admitted_at)
            raise
        except StoreAway as away:
            if not scope.has_budget:
                return self.local.reserve(scope, operation, bound=bound, attempt=attempt)
            if away.sent:
                self._release_later(scope, operation, admitted_at)
            raise LimitsUnavailable(retry_after=RETRY_AFTER) from away
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
        """Return whether a call in another process waits for the flight of this one; False while Redis is down."""
        flight = self._flights.get(operation)
        if flight is None:
            return False
        shard, key = flight
        try:
            return bool(self.store.call(scripts.AWAITED, prefix_of(shard), (key,)))
        except RedisError:
            return False

    def renew(self, shard: int, operations: Iterable[str]) -> frozenset[str]:
        """Extend the leases of a shard's open operations to a full lease from now; return those that are still open.

        While Redis is down they all count as open; a late settle corrects that.
        """
        names = frozenset(operations)
        alone = frozenset(filter(self.local.holds, names))
        asked = sorted(names - alone)
        if not asked:
            return alone
        try:
            still_open = self._call("renew", shard, [self.lease_seconds * SECOND, *asked])
        except (StoreAway, LimitsUnavailable):
            return names
        return alone | {name for name, held in zip(asked, still_open, strict=True) if held}

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
        """Release the slot, replace the bound by what was used, end the flight, and emit the record, all in one step.

        The ledger is that of the month of `admitted_at`. If the lease had expired, the charge of the bound is replaced
        once. Without a record, settles without emitting one. `flight_error` goes to those who follow the flight. While
        Redis is down or fails, the settlement waits for it; the record does not.
        """
        held = self._held.pop(operation, None)
        self._flights.pop(operation, None)
        pending = Pending(scope, operation, admitted_at, used, self._clock(), record=record, flight_error=flight_error)
        settlement = self.local.settle(operation, used) if self.local.holds(operation) else None
        if settlement is not None:
            if not scope.is_provider:
                self._settle_later(pending, overrun=settlement.overrun, sent=False)
            return settlement
        try:
            return self._settle(pending)
        except (StoreAway, LimitsUnavailable) as error:
            sent = not isinstance(error, StoreAway) or error.sent
        except Exception:
            logger.exception("limits: the settlement of %s has to wait", operation)  # the seeder has no database
            sent = False
        overrun = held is not None and (used.tokens > held.tokens or used.cost > held.cost)
        self._settle_later(pending, overrun=overrun, sent=sent)
        return Settlement(used, overrun)

    def emit(self, account_id: int, operation: str, record: UsageRecord, *, group: RefusalGroup | None = None) -> bool:
        """Emit the record of a request that reserved nothing (a hit, a refusal); return False if it was emitted before.

        With a `group` it may be counted together with others instead. If the operation turns out to hold a reservation
        (the reply to reserve was lost), that is released. While Redis is down, the record goes to the database.
        """
        # The month does not matter: an operation that reserved has its own, and one that did not is charged nothing.
        nobody = LimitSet(account_id, ())
        pending = Pending(nobody, operation, 0, Amount(), self._clock(), record=record, group=group)
        try:
            return self._emit(pending)
        except (StoreAway, LimitsUnavailable) as error:
            if group is None:
                if not self._stored(replace(record, id=operation)):
                    self._keep(pending)
            elif _may_have_arrived(error):
                self._keep(pending)
            else:
                self.refusal_counts.add(group, operation, record, self._clock())
                if self.refusal_counts:
                    self._repairer.begin()
            return True

    def reap(self, shard: int, *, at_most: int = MAX_REAPED) -> int:
        """Charge the bound of the shard's reservations whose lease has expired; return how many there were.

        While Redis is down there is nothing to charge: that happens after its return.
        """
        try:
            return int(self._call("reap", shard, [at_most]))
        except StoreAway:
            return 0

    def usage(self, scope: LimitSet, month: int | None = None) -> tuple[SubjectUsage, ...]:
        """Return what each subject uses now, and has used in the month (YYYYMM; by default the current one).

        Raises LimitsUnavailable while Redis is down.
        """
        asked = month or month_of(self.now())
        arguments = scripts.usage_arguments(scope, asked)
        try:
            used: tuple[SubjectUsage, ...] = self._seeded(
                scope, lambda: scripts.usages(scope, asked, self._call("usage", scope.shard, arguments))
            )
            return used
        except StoreAway as away:
            raise LimitsUnavailable(retry_after=RETRY_AFTER) from away

    def usages(self, scopes: Sequence[LimitSet], month: int | None = None) -> list[tuple[SubjectUsage, ...]]:
        """Return the `usage` of many scopes, in a number of round trips that does not grow with theirs."""
        asked = month or month_of(self.now())
        calls = [(prefix_of(scope.shard), self._timed(scripts.usage_arguments(scope, asked))) for scope in scopes]
        try:
            while True:
                replies = self._ask(self.store.call_each, load("usage"), calls)
                found = [scripts.usages(scope, asked, reply) for scope, reply in zip(scopes, replies, strict=True)]
                missing = [
                    (scope, each.subjects)
                    for scope, each in zip(scopes, found, strict=True)
                    if isinstance(each, LedgerMissing)
                ]
                if not missing:
                    return [each for each in found if not isinstance(each, LedgerMissing)]
                self._seed(asked, missing)
        except StoreAway as away:
            raise LimitsUnavailable(retry_after=RETRY_AFTER) from away

    def write_errors(self) -> list[ResponseError | None]:
        """Write to every node; return for each the error with which it refuses, None if it accepts."""

        def error_of(prefix: str) -> ResponseError | None:
            try:
                self.store.call(scripts.WRITE, prefix, ())
            except ResponseError as error:
                return error
            return None

        return [error_of(prefix) for prefix in self.store.wire.one_a_node([prefix_of(each) for each in range(SHARDS)])]

    def repair_once(self) -> bool:
        """Probe Redis, and make the waiting settlements; return whether nothing is left to repair."""
        stored = self.refusal_counts.flush()
        return self.store.try_close() and self.pending.flush(self._emit) and stored

    def end(self) -> None:
        """Stop the background threads of a backend that is being replaced; waiting settlements are dropped."""
        self._repairer.end()
        self._heart.end()

    def _settle(self, pending: Pending) -> Settlement:
        """Settle in Redis.

        For an operation that Redis does not know (it was emptied) the used amount is charged, except to ledgers seeded
        from the database after the record was written there.
        """
        scope, used, record = pending.scope, pending.used, pending.record
        month = NO_MONTH if scope.is_provider else month_of(pending.admitted_at)
        arguments: list[Argument] = [
            pending.operation, month, used.tokens, used.cost, "" if record is None else record.as_json(),
            pending.recorded_at or "", pending.flight_error, *(subject.name for subject in scope.subjects),
        ]  # fmt: skip
        settlement: Settlement = self._seeded(
            scope, lambda: scripts.settlement(scope, month, self._call("settle", scope.shard, arguments))
        )
        return settlement

    def _emit(self, pending: Pending) -> bool:
        """Settle in Redis, or count the record in its group; return False if that was done before."""
        record, group = pending.record, pending.group
        if record is not None and group is not None:
            refusal: list[Argument] = [pending.operation, record.as_json(), group.owner, group.kind, REFUSALS_A_MINUTE]
            counted = self._call("refuse", pending.scope.shard, refusal)
            if counted != HOLDS_RESERVATION:
                return bool(counted)
            try:
                return not self._settle(pending).duplicate
            except StoreAway as away:  # the operation is known to Redis: it has to be settled there
                raise StoreAway(sent=True) from away
        return not self._settle(pending).duplicate

    def _beat(self) -> None:
        """Show that this process lives, in one round trip, and drop the flights that others have taken over."""
        operations: dict[int, list[str]] = defaultdict(list)
        pairs: dict[int, list[Argument]] = defaultdict(list)
        for operation, (shard, key) in list(self._flights.items()):
            operations[shard].append(operation)
            pairs[shard] += (key, operation)
        calls: list[Call] = [(prefix_of(shard), self._timed([self.process, *each])) for shard, each in pairs.items()]
        with suppress(StoreAway, LimitsUnavailable):  # the next beat finds out
            answers = self._ask(self.store.call_each, load("beat"), calls)
            for led, replies in zip(operations.values(), answers, strict=True):
                for operation, is_led in zip(led, replies, strict=True):
                    if not is_led:
                        self._flights.pop(operation, None)

    def _call(self, script: str, shard: int, arguments: Sequence[Argument]) -> Any:
        return self._ask(self.store.call, load(script), prefix_of(shard), self._timed(arguments))

    def _ask(self, call: Callable[..., T], *arguments: Any) -> T:
        """Make a call to Redis. Raises StoreAway, or LimitsUnavailable if Redis is there but the call fails."""
        try:
            return call(*arguments)
        except StoreAway:
            raise
        except RedisError as error:
            logger.error("limits: Redis answers the probe, but not the call: %s", error)
            raise LimitsUnavailable(retry_after=1) from error

    def _timed(self, arguments: Sequence[Argument]) -> list[Argument]:
        return ["" if self._store_clock is None else self._store_clock(), *arguments]

    def _seeded(self, scope: LimitSet, call: Callable[[], Any]) -> Any:
        """Make a call, again after each seeding of ledgers that it found missing."""
        answer = call()
        if isinstance(answer, LedgerMissing):
            # If many calls miss a ledger, one queries the database: together they would exhaust its connections.
            with self._seeding[scope.shard]:
                while isinstance(answer := call(), LedgerMissing):
                    self._seed(answer.month, [(scope, answer.subjects)])
        return answer

    def _seed(self, month: int, missing: Sequence[tuple[LimitSet, Sequence[Subject]]]) -> None:
        """Create ledgers with what the database has; raises its errors."""
        subjects = [subject for _, each in missing for subject in each]
        amounts = query_promptly(lambda: self.seeder(subjects, month), self._seeding_outage, failed="ledger_not_seeded")
        for scope, owners in missing:
            arguments: list[Argument] = [month, month_end(month) + LEDGER_KEPT]
            for subject in owners:
                arguments += (subject.name, amounts[subject].tokens, amounts[subject].cost)
            self._call("seed", scope.shard, arguments)

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

"""The exact limit backend: one Lua script call on Redis or Valkey for each step, and the seeding of missing ledgers.

It is exact for any number of processes. A ledger that Redis lost, or never had, is seeded from the database before
anything is taken from it. All Redis keys of an account begin with `aiapi:{s<shard>}:`, so that a call touches one slot
of a cluster. Redis's clock is the only one. Failures are raised as redis.RedisError; failover.py handles them.
"""

import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from redis.exceptions import ResponseError

from accounts.limits.records import UsageRecord
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
    LimitName,
    LimitSet,
    OperationClosed,
    Refusal,
    RefusalGroup,
    Reserved,
    Settlement,
    Status,
    Subject,
    SubjectUsage,
    Window,
    binding,
)
from core.database import query_promptly
from core.outage import Outage
from core.redis.wire import Argument, Call, Script, Wire, script
from core.times import DAY, month_end, month_of

Seeder = Callable[[Sequence[Subject], int], Mapping[Subject, Amount]]
"""Returns what subjects have settled in a month (YYYYMM), from the database. May raise database errors."""


@dataclass(frozen=True, slots=True)
class LedgerMissing:
    """Internal result: these subjects have no ledger for this month (YYYYMM). Missing is not zero."""

    subjects: tuple[Subject, ...]
    month: int


UNLIMITED = -1
HOLDS_RESERVATION = -1  # what refuse.lua returns for an operation that holds a reservation
LEDGER_KEPT = 45 * DAY * SECOND  # after the end of its month, for late settles and reports
RESERVE_LIMITS = (  # in the order of their numbers in reserve.lua
    LimitName.TOKENS_PER_MINUTE,
    LimitName.CONCURRENT_REQUESTS,
    LimitName.MONTHLY_TOKENS,
    LimitName.MONTHLY_COST,
    LimitName.REQUESTS_PER_MINUTE,
)
NO_MONTH = 0  # of a provider's own limits, which have no ledgers
#: Seconds between two signs of life of a process that leads flights: HEARTBEAT_TTL in prelude.lua allows three.
HEARTBEAT_SECONDS = 0.3
_AWAITED = script(b"return redis.call('EXISTS', KEYS[1] .. 'y:' .. ARGV[1] .. ':awaited')")
_WRITE = script(b"redis.call('SET', KEYS[1] .. 'written', 1, 'EX', 10)")


_LUA = Path(__file__).with_name("lua")


@cache
def load(name: str) -> Script:
    """Load a script of the lua folder, with the prelude that all share."""
    return script(b"\n".join((_LUA / f"{part}.lua").read_bytes() for part in ("prelude", name)))


def prefix_of(shard: int) -> str:
    """Return the prefix, with the hash tag, of all Redis keys of a shard."""
    return f"aiapi:{{s{shard}}}:"


def records_stream(shard: int) -> str:
    """Return the key of the stream for a shard's usage records."""
    return prefix_of(shard) + "records"


class RedisBackend:
    """The limits of all processes. All methods are safe to call from any thread or greenlet.

    A script that finds ledgers missing is repeated after they were seeded. If several processes seed the same ledger,
    the first wins. A `clock` (µs) replaces Redis's in tests.
    """

    def __init__(
        self,
        wire: Wire,
        *,
        seeder: Seeder,
        lease_seconds: int = 20,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.wire = wire
        self.seeder = seeder
        self.lease_seconds = lease_seconds
        self.process = uuid.uuid4().hex
        self._seeding = [threading.Lock() for _ in range(SHARDS)]
        self._seeding_outage = Outage()  # of its own: one account's slow sum must not fail the look-ups of keys
        self._clock = clock

    def now(self) -> int:
        """Return the time (µs) by the backend's clock."""
        return self.peek(LimitSet(NO_ACCOUNT, ())).at

    def write_errors(self) -> list[ResponseError | None]:
        """Write to every node; return for each the error with which it refuses, None if it accepts."""

        def error_of(prefix: str) -> ResponseError | None:
            try:
                self.wire.call(_WRITE, prefix, ())
            except ResponseError as error:
                return error
            return None

        return [error_of(prefix) for prefix in self.wire.one_a_node([prefix_of(shard) for shard in range(SHARDS)])]

    def admit(self, scope: LimitSet, operation: str) -> Admission:
        """Count one request against all subjects, or against none if any of them is at its limit.

        Admitting the same operation again within two minutes does not count again.
        """
        return self._admission(scope, operation, 1)

    def peek(self, scope: LimitSet) -> Admission:
        """Return what admit would return now, without counting."""
        return self._admission(scope, "", 0)

    def _admission(self, scope: LimitSet, operation: str, counting: int) -> Admission:
        arguments: list[Argument] = [operation, counting]
        for subject in scope.subjects:
            limits = subject.limits
            arguments += (subject.name, _number(limits.requests_per_minute), _number(limits.tokens_per_minute))
        admitted, at, *numbers = self._call("admit", scope.shard, arguments)
        rows = _rows(numbers, 4)
        statuses = tuple(_status(subject, row) for subject, row in zip(scope.subjects, rows, strict=True))
        if admitted:
            return Admission(True, at, statuses)
        refusals = [
            Refusal(LimitName.REQUESTS_PER_MINUTE, subject, used, limit, at, reset)
            for subject, (used, reset, _, _) in zip(scope.subjects, rows, strict=True)
            if (limit := subject.limits.requests_per_minute) is not None and used >= limit
        ]
        return Admission(False, at, statuses, binding(refusals))

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
        flight of a process that died goes to the next that asks.
        """
        month = NO_MONTH if scope.is_provider else month_of(admitted_at)
        arguments: list[Argument] = [
            operation, self.lease_seconds * SECOND, attempt, month, month_end(month) if month else 0,
            bound.prompt.tokens, bound.prompt.cost, bound.output_tokens, bound.least_output, bound.step,
            *divmod(bound.output_price, MILLION), "" if draft is None else draft.as_json(), MAX_REAPED_BY_RESERVE,
            *((flight.key, flight.since) if flight else ("", 0)), self.process,
        ]  # fmt: skip
        for subject in scope.subjects:
            limits = subject.limits
            arguments += (
                subject.name,
                _number(limits.tokens_per_minute),
                _number(limits.concurrent_requests),
                _number(limits.monthly_tokens),
                _number(limits.monthly_cost),
                _number(limits.requests_per_minute if scope.is_provider else None),
            )

        def run() -> Reserved | Refusal | InFlight | LedgerMissing:
            kind, *answer = self._call("reserve", scope.shard, arguments)
            if kind == b"ok":
                return _reserved(scope, answer)
            if kind == b"flight":
                is_open, at, error = answer
                return InFlight(bool(is_open), at, error.decode())
            if kind == b"refused":
                return _refusal(scope, answer)
            if kind == b"missing":
                return _missing(scope, answer, month)
            raise OperationClosed(operation)

        answer: Reserved | Refusal | InFlight = self._seeded(scope, run)
        return answer

    def renew(self, shard: int, operations: Iterable[str]) -> frozenset[str]:
        """Extend the leases of a shard's open operations to a full lease from now; return those that are still open."""
        names = list(operations)
        if not names:
            return frozenset()
        still_open = self._call("renew", shard, [self.lease_seconds * SECOND, *names])
        return frozenset(name for name, held in zip(names, still_open, strict=True) if held)

    def settle(
        self,
        scope: LimitSet,
        operation: str,
        *,
        admitted_at: int,
        used: Amount,
        record: UsageRecord | None,
        recorded_at: int | None = None,
        flight_error: str = "",
    ) -> Settlement:
        """Release the slot, replace the bound by what was used, end the flight, and emit the record, all in one step.

        The ledger is that of the month of `admitted_at`. If the lease had expired, the charge of the bound is replaced
        once. For an operation that the backend does not know (its store was emptied) the used amount is charged, except
        to ledgers seeded from the database after `recorded_at` (µs), the time at which the record was written there.
        Without a record, settles without emitting one. `flight_error` goes to those who follow the flight.
        """
        month = NO_MONTH if scope.is_provider else month_of(admitted_at)
        written = "" if record is None else record.as_json()
        arguments: list[Argument] = [operation, month, used.tokens, used.cost, written, recorded_at or "", flight_error]
        arguments += [subject.name for subject in scope.subjects]

        def run() -> Settlement | LedgerMissing:
            state, *rest = self._call("settle", scope.shard, arguments)
            if state == b"missing":
                return _missing(scope, rest, month)
            tokens, cost, overrun = rest
            return Settlement(Amount(tokens, cost), bool(overrun), late=state == b"b", duplicate=state == b"s")

        settlement: Settlement = self._seeded(scope, run)
        return settlement

    def keep_flights(self, flights: Mapping[str, tuple[int, str]]) -> set[str]:
        """Show that this process lives, for HEARTBEAT_SECONDS three times over; return the flights that it still leads.

        Flights are given and returned by operation, with their shards and keys.
        """
        by_shard: dict[int, list[str]] = defaultdict(list)
        for operation, (shard, _) in flights.items():
            by_shard[shard].append(operation)
        calls: list[Call] = []
        for shard, operations in by_shard.items():
            pairs = [part for operation in operations for part in (flights[operation][1], operation)]
            calls.append((prefix_of(shard), self._timed([self.process, *pairs])))
        answers = self.wire.call_each(load("beat"), calls)
        return {
            operation
            for operations, leads in zip(by_shard.values(), answers, strict=True)
            for operation, is_led in zip(operations, leads, strict=True)
            if is_led
        }

    def is_awaited(self, shard: int, key: str) -> bool:
        """Return whether a call in another process waited for a flight in the last second."""
        return bool(self.wire.call(_AWAITED, prefix_of(shard), (key,)))

    def emit(self, account_id: int, operation: str, record: UsageRecord, *, group: RefusalGroup | None = None) -> bool:
        """Emit the record of a request that reserved nothing (a hit, a refusal); return False if it was emitted before.

        With a `group` it may be counted together with others instead. If the operation turns out to hold a reservation
        (the reply to reserve was lost), that is released.
        """
        if group is not None:
            arguments: list[Argument] = [operation, record.as_json(), group.owner, group.kind, REFUSALS_A_MINUTE]
            noted = self._call("refuse", account_id % SHARDS, arguments)
            if noted != HOLDS_RESERVATION:
                return bool(noted)
        # The month does not matter: an operation that reserved has its own, and one that did not is charged nothing.
        nobody = LimitSet(account_id, ())
        return not self.settle(nobody, operation, admitted_at=0, used=Amount(), record=record).duplicate

    def reap(self, shard: int, *, at_most: int = MAX_REAPED) -> int:
        """Charge the bound of the shard's reservations whose lease has expired; return how many there were."""
        return int(self._call("reap", shard, [at_most]))

    def usage(self, scope: LimitSet, month: int | None = None) -> tuple[SubjectUsage, ...]:
        """Return what each subject uses now, and has used in the month (YYYYMM; by default the current one)."""
        asked = month or month_of(self.now())
        arguments = _usage_arguments(scope, asked)

        def run() -> tuple[SubjectUsage, ...] | LedgerMissing:
            return _usage_answer(scope, asked, self._call("usage", scope.shard, arguments))

        used: tuple[SubjectUsage, ...] = self._seeded(scope, run)
        return used

    def usages(self, scopes: Sequence[LimitSet], month: int | None = None) -> list[tuple[SubjectUsage, ...]]:
        """Return the `usage` of many scopes, in a number of round trips that does not grow with theirs."""
        asked = month or month_of(self.now())
        calls = [(prefix_of(scope.shard), self._timed(_usage_arguments(scope, asked))) for scope in scopes]
        while True:
            replies = zip(scopes, self.wire.call_each(load("usage"), calls), strict=True)
            answers = [(scope, _usage_answer(scope, asked, reply)) for scope, reply in replies]
            missing = [(scope, answer.subjects) for scope, answer in answers if isinstance(answer, LedgerMissing)]
            if not missing:
                return [answer for _, answer in answers if not isinstance(answer, LedgerMissing)]
            amounts = self._settled([subject for _, subjects in missing for subject in subjects], asked)
            for scope, subjects in missing:
                self._seed(scope, asked, {subject: amounts[subject] for subject in subjects})

    def _seeded(self, scope: LimitSet, call: Callable[[], Any]) -> Any:
        """Make a call, again after each seeding of ledgers that it found missing."""
        if isinstance(answer := call(), LedgerMissing):
            # If many calls miss a ledger, one queries the database: together they would exhaust its connections.
            with self._seeding[scope.shard]:
                while isinstance(answer := call(), LedgerMissing):
                    self._seed(scope, answer.month, self._settled(answer.subjects, answer.month))
        return answer

    def _settled(self, subjects: Sequence[Subject], month: int) -> Mapping[Subject, Amount]:
        return query_promptly(lambda: self.seeder(subjects, month), self._seeding_outage, failed="ledger_not_seeded")

    def _seed(self, scope: LimitSet, month: int, amounts: Mapping[Subject, Amount]) -> None:
        arguments: list[Argument] = [month, month_end(month) + LEDGER_KEPT]
        for subject, amount in amounts.items():
            arguments += (subject.name, amount.tokens, amount.cost)
        self._call("seed", scope.shard, arguments)

    def _call(self, script: str, shard: int, arguments: Sequence[Argument]) -> Any:
        return self.wire.call(load(script), prefix_of(shard), self._timed(arguments))

    def _timed(self, arguments: Sequence[Argument]) -> list[Argument]:
        return ["" if self._clock is None else self._clock(), *arguments]


def _number(limit: int | None) -> int:
    return UNLIMITED if limit is None else limit


def _rows(numbers: Sequence[int], width: int) -> list[Sequence[int]]:
    return [numbers[start : start + width] for start in range(0, len(numbers), width)]


def _window(limit: int | None, used: int, reset_at: int) -> Window | None:
    return None if limit is None else Window(limit, max(0, limit - used), reset_at)


def _status(subject: Subject, row: Sequence[int]) -> Status:
    requests, requests_reset, tokens, tokens_reset = row
    limits = subject.limits
    return Status(
        subject,
        _window(limits.requests_per_minute, requests, requests_reset),
        _window(limits.tokens_per_minute, tokens, tokens_reset),
    )


def _reserved(scope: LimitSet, answer: Sequence[int]) -> Reserved:
    leads_flight, output, tokens, cost, at, lease_until, *numbers = answer
    windows = tuple(
        _window(subject.limits.tokens_per_minute, *row)
        for subject, row in zip(scope.subjects, _rows(numbers, 2), strict=True)
    )
    return Reserved(output, Amount(tokens, cost), at, lease_until, windows, bool(leads_flight))


def _refusal(scope: LimitSet, answer: Sequence[int]) -> Refusal:
    at, *numbers = answer
    refusals = []
    for number, limit_number, used, reset_at, impossible in _rows(numbers, 5):
        subject, name = scope.subjects[number - 1], RESERVE_LIMITS[limit_number - 1]
        limit_value = getattr(subject.limits, name.value)
        refusals.append(Refusal(name, subject, used, limit_value, at, reset_at, impossible=bool(impossible)))
    return binding(refusals)


def _missing(scope: LimitSet, numbers: Sequence[int], month: int) -> LedgerMissing:
    return LedgerMissing(tuple(scope.subjects[number - 1] for number in numbers), month)


def _usage_arguments(scope: LimitSet, month: int) -> list[Argument]:
    arguments: list[Argument] = [month]
    for subject in scope.subjects:
        arguments += (subject.name, int(subject.limits.requests_per_minute is not None))
    return arguments


def _usage_answer(scope: LimitSet, month: int, answer: Sequence[Any]) -> tuple[SubjectUsage, ...] | LedgerMissing:
    kind, *numbers = answer
    if kind == b"missing":
        return _missing(scope, numbers, month)
    return tuple(_usage(subject, row) for subject, row in zip(scope.subjects, _rows(numbers, 7), strict=True))


def _usage(subject: Subject, row: Sequence[int]) -> SubjectUsage:
    requests, tokens, slots, settled_tokens, settled_cost, reserved_tokens, reserved_cost = row
    return SubjectUsage(
        subject,
        None if subject.limits.requests_per_minute is None else requests,
        tokens,
        slots,
        Amount(settled_tokens, settled_cost),
        Amount(reserved_tokens, reserved_cost),
    )

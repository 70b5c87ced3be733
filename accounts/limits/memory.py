"""The memory backend: the limits of one process, exact among its threads and greenlets.

Every operation runs under one lock and does nothing inside it that could yield. Memory is bounded: a subject that was
idle for 15 minutes is dropped, its ledger comes back from the database. Records go to `sink`, and open reservations
to `journal`, after the lock is released and in an order in which a crash leaves a charge rather than a gift:
opened before the call goes on, the record before closed. A record that can't be stored waits in the outbox.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

from accounts.limits.bounds import Amount, Bound
from accounts.limits.contract import (
    DEFAULT_LEASE_SECONDS,
    LAZY_REAPS,
    MINUTE,
    REAP_AT_MOST,
    SECOND,
    SHARDS,
    Admission,
    Draft,
    LimitName,
    OperationClosed,
    Refusal,
    Reserved,
    Scope,
    Settlement,
    Status,
    Subject,
    SubjectUsage,
    Tally,
    Window,
    binding,
)
from accounts.limits.journal import Journal, NoJournal
from accounts.limits.memory_operations import CHARGED_TTL, MARK_TTL, REFUSED_TTL, Operation, OperationBook
from accounts.limits.memory_subject import Ledger, SubjectState, requests_refusal, subject_usage, tokens_window
from accounts.limits.months import month_end, month_of
from accounts.limits.outbox import Outbox
from accounts.limits.records import Record, bound_record, final_record
from accounts.limits.seeding import BulkSeeder, LedgerMissing, Seeder, SeedingBackend
from accounts.limits.tallies import Tallies

IDLE = 15 * MINUTE  # longer than any record takes to the database, from which a dropped ledger is seeded
MONTHS_KEPT = 3


def wall_clock() -> int:
    """Give the time in µs since the epoch."""
    return time.time_ns() // 1000


class MemoryBackend(SeedingBackend):
    """The limits of one process. See the contract for what each method promises."""

    def __init__(
        self,
        *,
        seeder: Seeder,
        bulk_seeder: BulkSeeder | None = None,
        sink: Callable[[Record], None],
        journal: Journal | None = None,
        clock: Callable[[], int] = wall_clock,
        lease_seconds: int = DEFAULT_LEASE_SECONDS,
    ) -> None:
        super().__init__(seeder=seeder, bulk_seeder=bulk_seeder, lease_seconds=lease_seconds)
        self._sink = sink
        self._journal = journal or NoJournal()
        self._outbox = Outbox(sink, self._journal)
        self._clock = clock
        self._lock = threading.Lock()
        self._subjects: OrderedDict[str, SubjectState] = OrderedDict()
        self._operations = OperationBook()
        self._tallies = Tallies(sink)

    def now(self) -> int:
        """Give the time (µs) by the injected clock."""
        return self._clock()

    def holds(self, operation: str) -> bool:
        """Tell whether this backend has reserved for the operation, and still remembers it."""
        with self._lock:
            return self._operations.get(operation) is not None

    def admit(self, scope: Scope, operation: str) -> Admission:
        """Count one request against all subjects, or none."""
        with self._lock:
            return self._admit(scope, operation, counting=True)

    def peek(self, scope: Scope) -> Admission:
        """Tell what admit would answer."""
        with self._lock:
            return self._admit(scope, "", counting=False)

    def _admit(self, scope: Scope, operation: str, *, counting: bool) -> Admission:
        now = self._clock()
        self._forget(now)
        limited = [(s, self._subject(s.name, now)) for s in scope.subjects if s.limits.requests_per_minute is not None]
        now = max([now, *(state.latest_request(now) for _, state in limited)])
        refusals = [
            refusal for subject, state in limited if (refusal := requests_refusal(subject, state, now)) is not None
        ]
        known = self._operations.admitted_at(operation) if counting else None
        if counting and known is None and not refusals:
            self._operations.mark_admitted(operation, now)
            for _, state in limited:
                state.requests.append(now)
        statuses = tuple(self._status(subject, now, refusals) for subject in scope.subjects)
        if refusals and known is None:
            return Admission(False, now, statuses, binding(refusals))
        return Admission(True, now if known is None else known, statuses)

    def _status(self, subject: Subject, now: int, refusals: list[Refusal]) -> Status:
        state = self._subject(subject.name, now)
        limit = subject.limits.requests_per_minute
        if limit is None:
            return Status(subject, None, tokens_window(subject.limits, state, now))
        used = state.requests_used(now)
        whole = state.requests[-1] + MINUTE if state.requests else now
        reset = next((refusal.reset_at for refusal in refusals if refusal.subject == subject), whole)
        return Status(subject, Window(limit, max(0, limit - used), reset), tokens_window(subject.limits, state, now))

    def _reserve(
        self, scope: Scope, operation: str, admitted_at: int, bound: Bound, draft: Draft, attempt: int
    ) -> Reserved | Refusal | LedgerMissing:
        emitted: list[Record] = []
        try:
            with self._lock:
                now = self._clock()
                self._forget(now)
                emitted = self._reap(scope.shard, now, LAZY_REAPS)
                answer, fresh = self._take(scope, operation, now, month_of(admitted_at), bound, draft, attempt)
        finally:
            self._emit_bounds(emitted)
        if fresh is not None:
            self._write_down(operation, fresh)
        return answer

    def _take(
        self, scope: Scope, operation: str, now: int, month: int, bound: Bound, draft: Draft, attempt: int
    ) -> tuple[Reserved | Refusal | LedgerMissing, Operation | None]:
        """Do the work of reserve; the second of the answer is the operation if it changed."""
        held = self._operations.get(operation)
        if held is not None and held.state != "open":
            raise OperationClosed(operation)
        if held is not None and attempt <= held.attempt:
            return self._reserved(scope, held, now), None
        missing = tuple(s for s in scope.subjects if month not in self._subject(s.name, now).ledgers)
        if missing:
            return LedgerMissing(missing, month), None
        slot = 0 if held else 1
        refusals = self._refusals(scope, bound.at(bound.least_output), slot, now, month)
        if refusals:
            return binding(refusals), None
        output = self._largest_output(scope, bound, now, month)
        names = tuple(subject.name for subject in scope.subjects)
        taken = held or Operation(scope.shard, scope.account_id, subjects=names, month=month)
        self._hold(taken, slot, bound.at(output))
        taken.output += output
        taken.granted, taken.attempt, taken.draft = output, attempt, draft
        self._operations.lease(operation, taken, now + self.lease_seconds * SECOND)
        return self._reserved(scope, taken, now), taken

    def _hold(self, taken: Operation, slots: int, amount: Amount) -> None:
        taken.held += amount
        for name in taken.subjects:
            state = self._subjects[name]
            state.slots += slots
            state.open_tokens += amount.tokens
            state.ledgers[taken.month].reserved += amount

    def _reserved(self, scope: Scope, taken: Operation, now: int) -> Reserved:
        windows = tuple(tokens_window(s.limits, self._subject(s.name, now), now) for s in scope.subjects)
        return Reserved(taken.granted, taken.held, now, taken.lease_until, windows)

    def _refusals(self, scope: Scope, need: Amount, slot: int, now: int, month: int) -> list[Refusal]:
        refusals = []
        for subject in scope.subjects:
            state, limits = self._subjects[subject.name], subject.limits
            total, tokens, whole = state.ledgers[month].total(), state.tokens_used(now), month_end(month)
            excess = tokens + need.tokens - (limits.tokens_per_minute or 0)
            for name, limit, used, needed, reset in (
                (LimitName.TOKENS_PER_MINUTE, limits.tokens_per_minute, tokens, need.tokens, None),
                (LimitName.CONCURRENT_REQUESTS, limits.concurrent_requests, state.slots, slot, now + SECOND),
                (LimitName.MONTHLY_TOKENS, limits.monthly_tokens, total.tokens, need.tokens, whole),
                (LimitName.MONTHLY_COST, limits.monthly_cost, total.cost, need.cost, whole),
            ):
                if name is LimitName.MONTHLY_COST and not needed:
                    continue  # what costs nothing is not stopped by a budget in money, however overspent
                if limit is not None and used + needed > limit:
                    reset_at = state.tokens_free_at(now, excess) if reset is None else reset
                    refusals.append(Refusal(name, subject, used, limit, now, reset_at, impossible=needed > limit))
        return refusals

    def _largest_output(self, scope: Scope, bound: Bound, now: int, month: int) -> int:
        """Give the most output that fits all subjects, of which the least is known to fit, or to cost nothing."""
        tokens_left: list[int] = []
        cost_left: list[int] = []
        for subject in scope.subjects:
            state, limits = self._subjects[subject.name], subject.limits
            total = state.ledgers[month].total()
            if limits.tokens_per_minute is not None:
                tokens_left.append(limits.tokens_per_minute - state.tokens_used(now))
            if limits.monthly_tokens is not None:
                tokens_left.append(limits.monthly_tokens - total.tokens)
            if limits.monthly_cost is not None:
                least = bound.at(bound.least_output).cost
                cost_left.append(max(least, limits.monthly_cost - total.cost))
        output = bound.largest_output(min(tokens_left, default=None), min(cost_left, default=None))
        return bound.least_output if output is None else output

    def _write_down(self, operation: str, taken: Operation) -> None:
        """Enter a reservation in the journal, or undo it if that fails."""
        try:
            record = bound_record(operation, taken.draft or {}, taken.held, taken.output)
            self._journal.opened(operation, taken.account_id, record)
        except BaseException:
            with self._lock:
                now = self._clock()
                self._conclude(taken, Amount(), now)
                self._operations.close(operation, taken, state="settled", now=now, ttl=MARK_TTL)
            raise

    def renew(self, account_id: int, operations: Iterable[str]) -> frozenset[str]:
        """Prolong the leases of open operations."""
        with self._lock:
            until = self._clock() + self.lease_seconds * SECOND
            renewed = set()
            for operation in operations:
                held = self._operations.get(operation)
                if held is not None and held.state == "open":
                    self._operations.lease(operation, held, until)
                    renewed.add(operation)
            return frozenset(renewed)

    def _settle(
        self,
        scope: Scope,
        operation: str,
        admitted_at: int,
        used: Amount,
        record: Draft | None,
        recorded_at: int | None,
    ) -> Settlement | LedgerMissing:
        with self._lock:
            now = self._clock()
            self._forget(now)
            held = self._operations.get(operation)
            if held is not None and held.state == "settled":
                return Settlement(held.held, held.overrun, duplicate=True)
            if held is None and used != Amount():
                missing = self._charge_unknown(scope, month_of(admitted_at), used, recorded_at, now)
                if missing:
                    return missing
            settlement = self._settlement(held, used, now)
            closed = held or Operation(scope.shard, scope.account_id)
            closed.held, closed.overrun = used, settlement.overrun
            ttl = CHARGED_TTL if settlement.late or recorded_at is not None else MARK_TTL
            self._operations.close(operation, closed, state="settled", now=now, ttl=ttl)
        if record is not None:
            self._send(final_record(operation, record, overrun=settlement.overrun), reserved=held is not None)
        elif held is not None:
            self._journal.closed(operation)
        return settlement

    def _send(self, record: Record, *, reserved: bool) -> None:
        """Store a record. One of a call that reserved can wait; another's caller is told that it was not stored."""
        if reserved:
            self._outbox.send(record)
        else:
            self._sink(record)

    def _settlement(self, held: Operation | None, used: Amount, now: int) -> Settlement:
        """Replace what an operation holds or was charged by what it used."""
        if held is None:
            return Settlement(used)
        overrun = used.tokens > held.held.tokens or used.cost > held.held.cost
        if held.state == "open":
            self._conclude(held, used, now)
            return Settlement(used, overrun)
        for name in held.subjects:
            state = self._subject(name, now)
            state.replace_tokens(now, held.charged_second, used.tokens - held.held.tokens)
            if ledger := state.ledgers.get(held.month):
                ledger.settled += used - held.held
        return Settlement(used, overrun, late=True)

    def _charge_unknown(
        self, scope: Scope, month: int, used: Amount, recorded_at: int | None, now: int
    ) -> LedgerMissing | None:
        """Charge an operation nobody remembers, except where the seed from the database has it already."""
        states = [self._subject(subject.name, now) for subject in scope.subjects]
        missing = tuple(s for s, state in zip(scope.subjects, states, strict=True) if month not in state.ledgers)
        if missing:
            return LedgerMissing(missing, month)
        for state in states:
            if used.tokens > 0:
                state.add_tokens(now, used.tokens)
            ledger = state.ledgers[month]
            if recorded_at is None or ledger.seeded_at <= recorded_at:
                ledger.settled += used
        return None

    def _conclude(self, held: Operation, used: Amount, now: int) -> None:
        """Give back the slot and the bound of an open operation, and charge what it used."""
        held.charged_second = now // SECOND
        for name in held.subjects:
            state = self._subject(name, now)
            state.slots -= 1
            state.open_tokens -= held.held.tokens
            if used.tokens > 0:
                held.charged_second = state.add_tokens(now, used.tokens)
            if ledger := state.ledgers.get(held.month):
                ledger.reserved -= held.held
                ledger.settled += used

    def emit(self, account_id: int, operation: str, record: Draft, *, tally: Tally | None = None) -> bool:
        """Emit the record of a request that reserved nothing, or count it."""
        nobody = Scope(account_id, ())
        if tally is not None and self._is_new(nobody, operation):
            self._tallies.add(tally, operation, record, self._clock())
            return True
        return not self.settle(nobody, operation, admitted_at=self._clock(), used=Amount(), record=record).duplicate

    def _is_new(self, scope: Scope, operation: str) -> bool:
        """Note a refusal; answer False if the operation is known: it was emitted before, or holds a reservation."""
        with self._lock:
            now = self._clock()
            self._forget(now)
            if self._operations.get(operation) is not None:
                return False
            noted = Operation(scope.shard, scope.account_id)
            self._operations.close(operation, noted, state="settled", now=now, ttl=REFUSED_TTL)
            return True

    def reap(self, shard: int, *, at_most: int = REAP_AT_MOST) -> int:
        """Turn reservations whose lease has run out into charges of their bound."""
        with self._lock:
            emitted = self._reap(shard, self._clock(), at_most)
        self._emit_bounds(emitted)
        return len(emitted)

    def _reap(self, shard: int, now: int, at_most: int) -> list[Record]:
        emitted = []
        for operation, held in self._operations.expired(shard, now, at_most):
            self._conclude(held, held.held, now)
            emitted.append(bound_record(operation, held.draft or {}, held.held, held.output))
            self._operations.close(operation, held, state="bound", now=now, ttl=CHARGED_TTL)
        return emitted

    def _emit_bounds(self, emitted: list[Record]) -> None:
        for record in emitted:
            self._outbox.send(record)

    def tend(self) -> None:
        """Charge what died in this process, and write the records that wait for the database."""
        for shard in range(SHARDS):
            self.reap(shard)
        self._outbox.flush()
        self._tallies.flush()

    def _usage(self, scope: Scope, month: int) -> tuple[SubjectUsage, ...] | LedgerMissing:
        with self._lock:
            now = self._clock()
            states = [(subject, self._subject(subject.name, now)) for subject in scope.subjects]
            missing = tuple(subject for subject, state in states if month not in state.ledgers)
            if missing:
                return LedgerMissing(missing, month)
            return tuple(subject_usage(subject, state, state.ledgers[month], now) for subject, state in states)

    def _seed(self, scope: Scope, month: int, amounts: Mapping[Subject, Amount]) -> None:
        with self._lock:
            now = self._clock()
            for subject, amount in amounts.items():
                ledgers = self._subject(subject.name, now).ledgers
                ledgers.setdefault(month, Ledger(amount, now))
                for old in sorted(ledgers)[:-MONTHS_KEPT]:
                    del ledgers[old]

    def _subject(self, name: str, now: int) -> SubjectState:
        state = self._subjects.get(name)
        if state is None:
            state = self._subjects[name] = SubjectState()
        state.touched = now
        self._subjects.move_to_end(name)
        return state

    def _forget(self, now: int) -> None:
        """Drop what is too old to matter, and subjects that nobody used for long and that hold nothing open."""
        self._operations.forget(now)
        if self._outbox:
            return  # a ledger that came back from the database now would lack what waits for it
        while self._subjects:
            name, state = next(iter(self._subjects.items()))
            if state.touched + IDLE > now:
                break
            if state.slots:
                self._subject(name, now)
            else:
                del self._subjects[name]

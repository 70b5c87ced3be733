"""The limits under a random sequence of calls, compared with a plain model.

The model keeps plain lists of what happened, and computes every number from the beginning each time it is asked.
"""

import os
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from accounts.limits.types import (
    MINUTE,
    SECOND,
    Amount,
    Bound,
    Limits,
    LimitSet,
    OperationClosed,
    Reserved,
    Settlement,
    Subject,
)
from accounts.tests.limits_fixtures import (
    DRAFT,
    MIDMONTH,
    NOVEMBER,
    Clock,
    World,
    a_bound,
    a_scope,
    an_operation,
    redis_world,
)
from core.times import month_end, month_of

OPEN_AT_MOST = 12  # fewer than a reserve reaps on its way, so that the model need not know which
REMEMBERED = 2 * MINUTE  # for which an operation is known at least
STEPS = [0.2, 1, 7, 19.999_999, 20, 59, 60, 61]
LIMITS = st.one_of(st.none(), st.integers(1, 6))
AMOUNTS = st.one_of(st.none(), st.integers(20, 400))


@dataclass
class Call:
    """One operation as the model knows it. `second` is when its charge entered the tokens window, None while open."""

    scope: LimitSet
    admitted_at: int
    held: Amount
    lease_until: int
    charged: Amount | None = None
    second: int | None = None
    settled: bool = False
    bound_charged: bool = False
    attempt: int = 1


class Model:
    """Who was admitted when, and what every call holds or was charged."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.admitted: list[tuple[int, LimitSet]] = []
        self.calls: dict[str, Call] = {}
        self.records: list[tuple[str, int]] = []

    def requests(self, subject: Subject) -> int:
        return sum(subject in scope.subjects for at, scope in self.admitted if at + MINUTE > self.clock.now)

    def of(self, subject: Subject) -> list[Call]:
        return [call for call in self.calls.values() if subject in call.scope.subjects]

    def tokens(self, subject: Subject) -> int:
        oldest = self.clock.now // SECOND - 60
        charged = (call.charged.tokens for call in self.of(subject) if call.charged and (call.second or 0) >= oldest)
        return sum(charged) + sum(call.held.tokens for call in self.of(subject) if call.charged is None)

    def slots(self, subject: Subject) -> int:
        return sum(call.charged is None for call in self.of(subject))

    def ledger(self, subject: Subject, month: int) -> tuple[Amount, Amount]:
        settled = reserved = Amount()
        for call in self.of(subject):
            if month_of(call.admitted_at) == month:
                settled += call.charged or Amount()
                reserved += call.held if call.charged is None else Amount()
        return settled, reserved

    def fits(self, scope: LimitSet, need: Amount, month: int, slot: int) -> bool:
        return all(self._fits(subject, need, month, slot) for subject in scope.subjects)

    def _fits(self, subject: Subject, need: Amount, month: int, slot: int) -> bool:
        limits, (settled, reserved) = subject.limits, self.ledger(subject, month)
        total = settled + reserved + need
        pairs = (
            (self.tokens(subject) + need.tokens, limits.tokens_per_minute),
            (self.slots(subject) + slot, limits.concurrent_requests),
            (total.tokens, limits.monthly_tokens),
            (total.cost if need.cost else 0, limits.monthly_cost),  # what costs nothing is not stopped
        )
        return all(limit is None or value <= limit for value, limit in pairs)

    def reap(self) -> int:
        expired = [name for name, call in self.calls.items() if not call.charged and self._ran_out(call)]
        for name in sorted(expired, key=lambda name: self.calls[name].lease_until):
            call = self.calls[name]
            call.charged, call.second, call.bound_charged = call.held, self.clock.now // SECOND, True
            self.records.append((name, 1))
        return len(expired)

    def _ran_out(self, call: Call) -> bool:
        return call.lease_until <= self.clock.now

    def settle(self, operation: str, used: Amount) -> None:
        call = self.calls[operation]
        if not call.bound_charged:
            call.second = self.clock.now // SECOND
        call.charged, call.settled = used, True
        self.records.append((operation, 2))


class LimitsMachine(RuleBasedStateMachine):
    """Drives the limits by the clock of the model, which agrees with whatever they answer."""

    @initialize(
        rates=st.tuples(LIMITS, LIMITS),
        slots=st.tuples(LIMITS, LIMITS),
        tokens=st.tuples(AMOUNTS, AMOUNTS),
        budgets=st.tuples(AMOUNTS, AMOUNTS),
        money=AMOUNTS,
        start=st.sampled_from([MIDMONTH, month_end(NOVEMBER) - 40 * SECOND]),
    )
    def begin(
        self,
        rates: tuple[int | None, int | None],
        slots: tuple[int | None, int | None],
        tokens: tuple[int | None, int | None],
        budgets: tuple[int | None, int | None],
        money: int | None,
        start: int,
    ) -> None:
        self.clock = Clock(start)
        self.world: World = redis_world(self.clock)
        self.model = Model(self.clock)
        self.world.database.knows = lambda subject, month: self.model.ledger(subject, month)[0]
        key, account = (
            Limits(rates[n], tokens[n], slots[n], budgets[n], money and money * 1_000 * (n + 1)) for n in range(2)
        )
        first = a_scope(account)
        owner = first.subjects[1]
        names = (first.subjects[0].id, first.subjects[0].id + "b")
        self.scopes = [LimitSet(first.account_id, (Subject("key", name, key), owner)) for name in names]
        self.last_admitted = ""
        self.last_settled = ""
        self.overran = False

    def ask(self, call: str, *args: object, **more: object) -> Any:
        """Make a call, and return what it answers, or OperationClosed."""
        try:
            return getattr(self.world.backend, call)(*args, **more)
        except OperationClosed:
            return OperationClosed

    def open(self) -> list[str]:
        return [name for name, call in self.model.calls.items() if call.charged is None]

    def unsettled(self) -> list[str]:
        return [name for name, call in self.model.calls.items() if not call.settled]

    @rule(seconds=st.sampled_from(STEPS))
    def step(self, seconds: float) -> None:
        self.clock.step(seconds)

    @rule(which=st.integers(0, 1))
    def admit(self, which: int) -> None:
        scope, operation = self.scopes[which], an_operation()
        expected = all(
            subject.limits.requests_per_minute is None
            or self.model.requests(subject) < subject.limits.requests_per_minute
            for subject in scope.subjects
        )
        self.ask("peek", scope)
        admission = self.ask("admit", scope, operation)
        assert admission.admitted is expected
        if expected:
            self.model.admitted.append((self.clock.now, scope))
            self.last_admitted = operation

    @precondition(lambda self: self.last_admitted and self.clock.now - self.model.admitted[-1][0] < REMEMBERED)
    @rule()
    def admit_again(self) -> None:
        at, scope = self.model.admitted[-1]
        admission = self.ask("admit", scope, self.last_admitted)
        assert (admission.admitted, admission.at) == (True, at)

    @precondition(lambda self: len(self.open()) < OPEN_AT_MOST)
    @rule(
        which=st.integers(0, 1),
        prompt=st.integers(0, 40),
        answers=st.integers(0, 20),
        step=st.integers(1, 3),
        price=st.sampled_from([0, 1, 999_999, 1_000_000_000, 1_333_333_333]),
        flexible=st.booleans(),
    )
    def reserve(self, which: int, prompt: int, answers: int, step: int, price: int, flexible: bool) -> None:
        least = min(1, answers) * step if flexible else None
        bound = a_bound(prompt, answers * step, step=step, output_price=price, minimum_output=least)
        self.model.reap()
        self._reserve(self.scopes[which], an_operation(), self.clock.now, bound, attempt=1)

    @precondition(lambda self: self.open())
    @rule(index=st.integers(0, OPEN_AT_MOST), again=st.booleans(), output=st.integers(0, 30))
    def reserve_more(self, index: int, again: bool, output: int) -> None:
        operation = self.open()[index % len(self.open())]
        call = self.model.calls[operation]
        self.model.reap()
        if again or call.charged is not None:
            before = self.model.ledger(call.scope.subjects[0], month_of(call.admitted_at))
            self.ask("reserve", call.scope, operation, admitted_at=call.admitted_at, bound=a_bound(), draft=DRAFT)
            assert self.model.ledger(call.scope.subjects[0], month_of(call.admitted_at)) == before
        else:
            bound = a_bound(0, output)
            self._reserve(call.scope, operation, call.admitted_at, bound, attempt=call.attempt + 1)

    def _reserve(self, scope: LimitSet, operation: str, admitted_at: int, bound: Bound, attempt: int) -> None:
        month = month_of(admitted_at)
        slot = 0 if operation in self.model.calls else 1
        outputs = range(bound.output_tokens, bound.least_output - 1, -bound.step)
        best = next((o for o in outputs if self.model.fits(scope, bound.at(o), month, slot)), None)
        answer = self.ask(
            "reserve", scope, operation, admitted_at=admitted_at, bound=bound, draft=DRAFT, attempt=attempt
        )
        assert (answer.output_tokens if isinstance(answer, Reserved) else None) == best
        if isinstance(answer, Reserved):
            known = self.model.calls.get(operation) or Call(scope, admitted_at, Amount(), 0)
            held = known.held + bound.at(answer.output_tokens)
            assert answer.held == held
            self.model.calls[operation] = replace(known, held=held, lease_until=answer.lease_until, attempt=attempt)

    @precondition(lambda self: self.unsettled())
    @rule(index=st.integers(0, 50), share=st.sampled_from([0, 0.3, 1, 1, 1.5]))
    def settle(self, index: int, share: float) -> None:
        operation = self.unsettled()[index % len(self.unsettled())]
        call = self.model.calls[operation]
        used = Amount(int(call.held.tokens * share), int(call.held.cost * share))
        overrun = used.tokens > call.held.tokens or used.cost > call.held.cost
        self.overran |= overrun
        answer = self.ask("settle", call.scope, operation, admitted_at=call.admitted_at, used=used, record=DRAFT)
        assert answer == Settlement(used, overrun, late=call.bound_charged)
        self.model.settle(operation, used)
        self.last_settled, self.settled_at = operation, self.clock.now

    @precondition(lambda self: self.last_settled and self.clock.now - self.settled_at < REMEMBERED)
    @rule()
    def settle_again(self) -> None:
        call = self.model.calls[self.last_settled]
        answer = self.ask(
            "settle", call.scope, self.last_settled, admitted_at=call.admitted_at, used=Amount(9, 9), record=DRAFT
        )
        assert answer.duplicate
        assert not self.ask("emit", call.scope.account_id, self.last_settled, DRAFT)

    @rule(which=st.integers(0, 1), tokens=st.integers(0, 50))
    def settle_unknown(self, which: int, tokens: int) -> None:
        scope, operation, used = self.scopes[which], an_operation(), Amount(tokens, tokens)
        self.ask("settle", scope, operation, admitted_at=self.clock.now, used=used, record=DRAFT)
        self.overran = True  # it reserved nothing, so no limit could hold it
        self.model.calls[operation] = Call(scope, self.clock.now, Amount(), 0)
        self.model.settle(operation, used)

    @precondition(lambda self: self.open())
    @rule(index=st.integers(0, OPEN_AT_MOST))
    def renew(self, index: int) -> None:
        operation = self.open()[index % len(self.open())]
        assert self.ask("renew", self.scopes[0].shard, [operation, "unknown"]) == {operation}
        self.model.calls[operation].lease_until = self.clock.now + 20 * SECOND

    @rule()
    def reap(self) -> None:
        assert self.ask("reap", self.scopes[0].shard) == self.model.reap()

    @rule()
    def crash(self) -> None:
        """All calls that are open die with their process: nobody settles them, their leases run out."""
        for call in self.model.calls.values():
            call.settled |= call.charged is None
        self.clock.step(20)
        self.reap()

    @invariant()
    def agree(self) -> None:
        """Usage and records are those of the model; budgets are never exceeded."""
        month = month_of(self.clock.now)
        for scope in self.scopes:
            for used in self.ask("usage", scope, month):
                subject = used.subject
                counted = subject.limits.requests_per_minute is not None
                assert used.requests == (self.model.requests(subject) if counted else None)
                assert (used.tokens, used.slots) == (self.model.tokens(subject), self.model.slots(subject))
                assert (used.settled, used.reserved) == self.model.ledger(subject, month)
                if not self.overran and subject.limits.monthly_tokens is not None:
                    assert used.settled.tokens + used.reserved.tokens <= subject.limits.monthly_tokens
        emitted = self.world.drain()
        assert sorted((record.id, record.revision) for record in emitted) == sorted(self.model.records)
        self.model.records.clear()


LimitsMachine.TestCase.settings = settings(
    max_examples=400 if os.environ.get("FULL") == "1" else 40,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestLimitsMachine = LimitsMachine.TestCase

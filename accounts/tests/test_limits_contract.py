"""What the limits promise, with an injected clock and no sleeps."""

from dataclasses import replace
from typing import Any

import pytest

from accounts.limits.pending import Pending
from accounts.limits.types import (
    MINUTE,
    SECOND,
    Admission,
    Amount,
    InFlight,
    LimitName,
    Limits,
    LimitSet,
    OperationClosed,
    Refusal,
    Reserved,
    Settlement,
    SubjectUsage,
)
from accounts.tests.limits_fixtures import (
    DECEMBER,
    DRAFT,
    NOVEMBER,
    World,
    a_bound,
    a_scope,
    an_operation,
    redis_world,
)
from core.times import month_end


@pytest.fixture
def world() -> World:
    return redis_world()


def admit(world: World, scope: LimitSet) -> Admission:
    return world.backend.admit(scope, an_operation())


def reserve(
    world: World, scope: LimitSet, operation: str = "", attempt: int = 1, **bound: int
) -> Reserved | Refusal | InFlight:
    return world.backend.reserve(
        scope,
        operation or an_operation(),
        admitted_at=world.clock.now,
        bound=a_bound(**bound),
        draft=DRAFT,
        attempt=attempt,
    )


def reserved(world: World, scope: LimitSet, operation: str = "", attempt: int = 1, **bound: int) -> Reserved:
    answer = reserve(world, scope, operation, attempt, **bound)
    assert isinstance(answer, Reserved), answer
    return answer


def refused(world: World, scope: LimitSet, operation: str = "", attempt: int = 1, **bound: int) -> Refusal:
    answer = reserve(world, scope, operation, attempt, **bound)
    assert isinstance(answer, Refusal), answer
    return answer


def settle(world: World, scope: LimitSet, operation: str, tokens: int, **more: Any) -> Settlement:
    used = Amount(tokens, tokens * 1_000)
    admitted_at = more.pop("admitted_at", world.clock.now)
    record = replace(DRAFT, output_tokens=tokens)
    return world.backend.settle(scope, operation, admitted_at=admitted_at, used=used, record=record, **more)


def usage(world: World, scope: LimitSet, month: int = NOVEMBER) -> SubjectUsage:
    return world.backend.usage(scope, month)[0]


class TestRequests:
    def test_it_admits_up_to_the_limit_and_says_what_is_left(self, world: World) -> None:
        scope = a_scope(requests_per_minute=3)
        windows = [admit(world, scope).statuses[0].requests for _ in range(3)]
        assert [window.remaining for window in windows if window] == [2, 1, 0]
        assert [window.reset_at for window in windows if window] == [world.clock.now + MINUTE] * 3
        assert admit(world, scope).admitted is False

    def test_it_tells_a_refused_request_the_time_its_slot_is_free(self, world: World) -> None:
        scope = a_scope(requests_per_minute=2)
        first = admit(world, scope).at
        world.clock.step(10)
        admit(world, scope)
        world.clock.step(5.5)
        refusal = admit(world, scope).refusal
        assert refusal is not None
        assert (refusal.limit, refusal.used, refusal.limit_value) == (LimitName.REQUESTS_PER_MINUTE, 2, 2)
        assert refusal.subject == scope.subjects[0]
        assert refusal.reset_at == first + MINUTE
        assert refusal.retry_after == 45
        world.clock.now = refusal.reset_at - 1
        assert not admit(world, scope).admitted
        world.clock.now = refusal.reset_at
        assert admit(world, scope).admitted
        assert not admit(world, scope).admitted

    def test_it_never_admits_more_than_the_limit_in_any_minute(self, world: World) -> None:
        scope = a_scope(requests_per_minute=5)
        admitted = []
        for step in range(200):
            world.clock.step(1 + step % 7)
            if (admission := admit(world, scope)).admitted:
                admitted.append(admission.at)
        assert all(later - earlier >= MINUTE for earlier, later in zip(admitted, admitted[5:], strict=False))

    def test_it_counts_in_all_subjects_or_in_none(self, world: World) -> None:
        scope = a_scope(Limits(requests_per_minute=1), requests_per_minute=5)
        admit(world, scope)
        admission = admit(world, scope)
        assert admission.refusal is not None
        assert admission.refusal.subject.kind == "account"
        assert usage(world, scope).requests == 1

    def test_it_names_the_limit_that_binds_longest(self, world: World) -> None:
        scope = a_scope(Limits(requests_per_minute=2), requests_per_minute=1)
        account_alone = LimitSet(scope.account_id, scope.subjects[1:])
        admit(world, account_alone)
        world.clock.step(10)
        admit(world, scope)
        refusal = admit(world, scope).refusal
        assert refusal is not None
        assert refusal.subject.kind == "key"
        assert refusal.reset_at == world.clock.now + MINUTE

    def test_it_admits_an_operation_once(self, world: World) -> None:
        scope, operation = a_scope(requests_per_minute=2), an_operation()
        first = world.backend.admit(scope, operation)
        world.clock.step(1)
        again = world.backend.admit(scope, operation)
        assert (again.admitted, again.at) == (True, first.at)
        assert usage(world, scope).requests == 1

    def test_it_admits_an_operation_again_that_itself_filled_the_window(self, world: World) -> None:
        scope, operation = a_scope(requests_per_minute=1), an_operation()
        assert world.backend.admit(scope, operation).admitted
        assert world.backend.admit(scope, operation).admitted
        assert not admit(world, scope).admitted

    def test_it_peeks_without_counting(self, world: World) -> None:
        scope = a_scope(requests_per_minute=1)
        for _ in range(3):
            assert world.backend.peek(scope).admitted
        admit(world, scope)
        peeked = world.backend.peek(scope)
        assert not peeked.admitted
        assert peeked.refusal is not None

    def test_it_never_lets_the_clock_run_backward(self, world: World) -> None:
        scope = a_scope(requests_per_minute=2)
        first = admit(world, scope)
        world.clock.step(-30)
        assert admit(world, scope).at == first.at
        assert not admit(world, scope).admitted

    def test_it_starts_anew_after_the_clock_was_set_back_by_more_than_a_window(self, world: World) -> None:
        scope = a_scope(requests_per_minute=1)
        admit(world, scope)
        world.clock.step(-3600)
        assert admit(world, scope).admitted
        assert not admit(world, scope).admitted

    def test_it_obeys_a_limit_that_was_lowered(self, world: World) -> None:
        scope = a_scope(requests_per_minute=5)
        for _ in range(5):
            admit(world, scope)
            world.clock.step(1)
        key = scope.subjects[0]
        lowered = LimitSet(scope.account_id, (type(key)(key.kind, key.id, Limits(requests_per_minute=2)),))
        refusal = admit(world, lowered).refusal
        assert refusal is not None
        world.clock.now = refusal.reset_at - 1
        assert not admit(world, lowered).admitted
        world.clock.now = refusal.reset_at
        assert admit(world, lowered).admitted

    def test_it_admits_nothing_at_zero_and_everything_without_a_limit(self, world: World) -> None:
        assert not admit(world, a_scope(requests_per_minute=0)).admitted
        unlimited = a_scope()
        statuses = [admit(world, unlimited).statuses[0] for _ in range(50)]
        assert statuses[-1].requests is None
        assert usage(world, unlimited).requests is None

    def test_it_forgets_many_requests_at_once(self, world: World) -> None:
        scope = a_scope(requests_per_minute=1000)
        for _ in range(300):
            admit(world, scope)
            world.clock.step(0.1)
        world.clock.step(45)
        used = 1 + sum(1 for number in range(300) if number * 0.1 > 15)
        window = admit(world, scope).statuses[0].requests
        assert window is not None
        assert window.remaining == 1000 - used


class TestTokensPerMinute:
    def test_it_counts_open_bounds_and_settled_tokens(self, world: World) -> None:
        scope, operation = a_scope(tokens_per_minute=250), an_operation()
        granted = reserved(world, scope, operation)
        assert granted.tokens[0] is not None
        assert (granted.held, granted.tokens[0].remaining) == (Amount(100, 100_000), 150)
        settle(world, scope, operation, 40)
        assert usage(world, scope).tokens == 40
        window = world.backend.peek(scope).statuses[0].tokens
        assert window is not None
        assert window.remaining == 210

    def test_it_lets_settled_tokens_leave_late_and_never_early(self, world: World) -> None:
        scope, operation = a_scope(tokens_per_minute=100), an_operation()
        reserved(world, scope, operation)
        settle(world, scope, operation, 60)
        settled_at = world.clock.now
        refusal = refused(world, scope, prompt=50, output=0)
        assert (refusal.limit, refusal.used, refusal.impossible) == (LimitName.TOKENS_PER_MINUTE, 60, False)
        assert settled_at + MINUTE <= refusal.reset_at <= settled_at + MINUTE + SECOND
        world.clock.now = refusal.reset_at - 1
        refused(world, scope, prompt=50, output=0)
        world.clock.now = refusal.reset_at
        reserved(world, scope, prompt=50, output=0)

    def test_it_waits_only_for_as_many_tokens_as_it_needs(self, world: World) -> None:
        scope = a_scope(tokens_per_minute=100)
        settled_at = []
        for _ in range(3):
            operation = an_operation()
            reserved(world, scope, operation, prompt=30, output=0)
            settle(world, scope, operation, 30)
            settled_at.append(world.clock.now)
            world.clock.step(5)
        refusal = refused(world, scope, prompt=50, output=0)
        assert refusal.used == 90
        assert settled_at[1] + MINUTE <= refusal.reset_at <= settled_at[1] + MINUTE + SECOND  # two of the three
        world.clock.now = refusal.reset_at - 1
        refused(world, scope, prompt=50, output=0)
        world.clock.now = refusal.reset_at
        reserved(world, scope, prompt=50, output=0)

    def test_it_says_when_a_bound_can_never_fit(self, world: World) -> None:
        refusal = refused(world, a_scope(tokens_per_minute=99))
        assert refusal.impossible


class TestConcurrency:
    def test_it_counts_open_reservations(self, world: World) -> None:
        scope, operation = a_scope(concurrent_requests=1), an_operation()
        reserved(world, scope, operation)
        refusal = refused(world, scope)
        assert (refusal.limit, refusal.used, refusal.retry_after) == (LimitName.CONCURRENT_REQUESTS, 1, 1)
        settle(world, scope, operation, 1)
        reserved(world, scope)

    def test_it_reserves_in_all_subjects_or_in_none(self, world: World) -> None:
        scope = a_scope(Limits(monthly_tokens=50), concurrent_requests=5)
        assert refused(world, scope).subject.kind == "account"
        assert usage(world, scope).slots == 0
        assert usage(world, scope).reserved == Amount()


class TestBudgets:
    def test_it_never_reserves_more_than_the_budget(self, world: World) -> None:
        scope = a_scope(monthly_tokens=250)
        operations = [an_operation() for _ in range(2)]
        for operation in operations:
            reserved(world, scope, operation)
        refusal = refused(world, scope)
        assert (refusal.limit, refusal.used, refusal.limit_value) == (LimitName.MONTHLY_TOKENS, 200, 250)
        assert refusal.reset_at == month_end(NOVEMBER)
        assert not refusal.impossible
        settle(world, scope, operations[0], 50)
        reserved(world, scope)
        assert usage(world, scope).settled == Amount(50, 50_000)
        assert usage(world, scope).reserved == Amount(200, 200_000)

    def test_it_holds_budgets_in_money(self, world: World) -> None:
        scope = a_scope(Limits(monthly_cost=100_000))
        reserved(world, scope)
        refusal = refused(world, scope, prompt=1, output=0)
        assert (refusal.limit, refusal.used) == (LimitName.MONTHLY_COST, 100_000)

    def test_it_lets_pass_what_costs_nothing_however_overspent_a_budget_in_money_is(self, world: World) -> None:
        scope, operation = a_scope(Limits(monthly_cost=50_000), monthly_cost=90_000, monthly_tokens=500), an_operation()
        reserved(world, scope, operation, prompt=0, output=50)
        settle(world, scope, operation, 200)
        assert reserved(world, scope, prompt=0, output_price=0).output_tokens == 90
        assert refused(world, scope, prompt=0, output=1).limit is LimitName.MONTHLY_COST
        longest = reserved(world, scope, prompt=0, output=400, output_price=0, minimum_output=1).output_tokens
        assert longest == 500 - 200 - 90, "its tokens count like any"
        assert refused(world, scope, prompt=0, output_price=0).limit is LimitName.MONTHLY_TOKENS

    def test_it_charges_the_month_of_admission(self, world: World) -> None:
        scope, operation = a_scope(monthly_tokens=100), an_operation()
        world.clock.now = month_end(NOVEMBER) - SECOND
        reserved(world, scope, operation)
        world.clock.step(2)
        settle(world, scope, operation, 100)
        assert usage(world, scope, NOVEMBER).settled.tokens == 100
        assert usage(world, scope, DECEMBER).settled.tokens == 0
        reserved(world, scope)

    def test_it_keeps_ledgers_where_no_budget_is_set(self, world: World) -> None:
        scope, operation = a_scope(), an_operation()
        reserved(world, scope, operation)
        settle(world, scope, operation, 30)
        assert [used.settled for used in world.backend.usage(scope)] == [Amount(30, 30_000)] * 2

    def test_it_seeds_a_missing_ledger_once_from_the_database(self, world: World) -> None:
        scope = a_scope(monthly_tokens=100)
        world.database.ledgers[scope.subjects[0].name, NOVEMBER] = Amount(40, 7)
        refusal = refused(world, scope)
        assert (refusal.used, refusal.impossible) == (40, False)
        reserved(world, scope, prompt=60, output=0)
        assert len(world.database.asked) == 2
        assert usage(world, scope).settled == Amount(40, 7)

    def test_it_lets_the_first_seed_win(self, world: World) -> None:
        scope = a_scope(monthly_tokens=100)
        for amount in (Amount(40, 7), Amount(90, 9)):
            world.database.ledgers = {(subject.name, NOVEMBER): amount for subject in scope.subjects}
            world.backend._seed(NOVEMBER, [(scope, scope.subjects)])
        assert usage(world, scope).settled == Amount(40, 7)

    def test_it_reports_the_impossible_before_what_merely_takes_long(self, world: World) -> None:
        scope = a_scope(Limits(monthly_tokens=100), tokens_per_minute=50)
        reserved(world, scope, prompt=40, output=0)
        refusal = refused(world, scope)
        assert (refusal.limit, refusal.impossible) == (LimitName.TOKENS_PER_MINUTE, True)


class TestFlexibleOutput:
    @pytest.mark.parametrize(
        ("limits", "output"),
        [
            ({}, 90),
            ({"monthly_tokens": 100}, 90),
            ({"monthly_tokens": 99}, 89),
            ({"monthly_tokens": 11}, 1),
            ({"tokens_per_minute": 40}, 30),
            ({"monthly_cost": 50_999}, 40),
            ({"monthly_cost": 11_000}, 1),
            ({"monthly_cost": 90_000, "monthly_tokens": 70}, 60),
        ],
    )
    def test_it_grants_the_most_that_fits(self, world: World, limits: dict[str, int], output: int) -> None:
        granted = reserved(world, a_scope(**limits), minimum_output=1)
        assert granted.output_tokens == output
        assert granted.held == Amount(10 + output, (10 + output) * 1_000)

    def test_it_refuses_when_not_even_the_least_fits(self, world: World) -> None:
        assert refused(world, a_scope(monthly_tokens=10), minimum_output=1).impossible

    def test_it_grants_multiples_of_the_step(self, world: World) -> None:
        assert reserved(world, a_scope(monthly_tokens=60), minimum_output=3, step=3).output_tokens == 48

    @pytest.mark.parametrize("price", [1, 333_333, 999_999, 1_000_000, 150_000_001, 75_000_000_007, 600_000_000_000])
    @pytest.mark.parametrize("budget", [10_000, 10_001, 123_457, 999_999_999, 777_777_777_777])
    def test_it_grants_exactly_what_the_money_buys(self, world: World, price: int, budget: int) -> None:
        bound = a_bound(output=2_000_000, output_price=price, minimum_output=0)
        answer = world.backend.reserve(
            a_scope(monthly_cost=budget), an_operation(), admitted_at=world.clock.now, bound=bound, draft=DRAFT
        )
        assert isinstance(answer, Reserved)
        assert answer.output_tokens == bound.largest_output(None, budget)
        assert answer.held == bound.at(answer.output_tokens)


class TestSettlement:
    def test_it_emits_the_record_with_the_settlement(self, world: World) -> None:
        scope, operation = a_scope(), an_operation()
        reserved(world, scope, operation)
        assert settle(world, scope, operation, 30) == Settlement(Amount(30, 30_000))
        assert world.drain() == [replace(DRAFT, output_tokens=30, id=operation, revision=2)]

    def test_it_settles_once(self, world: World) -> None:
        scope, operation = a_scope(), an_operation()
        reserved(world, scope, operation)
        settle(world, scope, operation, 30)
        assert settle(world, scope, operation, 99) == Settlement(Amount(30, 30_000), duplicate=True)
        assert len(world.drain()) == 1
        assert usage(world, scope).settled == Amount(30, 30_000)

    def test_it_flags_a_bill_above_the_bound(self, world: World) -> None:
        scope, operation = a_scope(monthly_tokens=100), an_operation()
        reserved(world, scope, operation)
        assert settle(world, scope, operation, 120).overrun
        assert world.drain()[0].is_overrun
        assert usage(world, scope).settled.tokens == 120

    def test_it_settles_without_a_record(self, world: World) -> None:
        scope, operation = a_scope(), an_operation()
        reserved(world, scope, operation)
        world.backend.settle(scope, operation, admitted_at=world.clock.now, used=Amount(1, 1), record=None)
        assert world.drain() == []

    def test_it_reserves_an_operation_once(self, world: World) -> None:
        scope, operation = a_scope(), an_operation()
        assert reserved(world, scope, operation) == reserved(world, scope, operation)
        assert usage(world, scope).slots == 1
        settle(world, scope, operation, 5)
        with pytest.raises(OperationClosed):
            reserve(world, scope, operation)

    def test_it_adds_the_bound_of_a_later_attempt_and_takes_no_second_slot(self, world: World) -> None:
        scope, operation = a_scope(concurrent_requests=1, monthly_tokens=250), an_operation()
        reserved(world, scope, operation)
        second = reserved(world, scope, operation, 2, output=40)
        assert (second.held, second.output_tokens) == (Amount(150, 150_000), 40)
        assert reserved(world, scope, operation, 2, output=40) == second
        assert refused(world, scope, operation, 3, output=100).limit == LimitName.MONTHLY_TOKENS
        used = usage(world, scope)
        assert (used.slots, used.reserved, used.tokens) == (1, Amount(150, 150_000), 150)
        assert not settle(world, scope, operation, 130).overrun
        assert usage(world, scope).reserved == Amount()

    def test_it_emits_records_of_requests_that_reserved_nothing_once(self, world: World) -> None:
        scope, operation = a_scope(), an_operation()
        assert world.backend.emit(scope.account_id, operation, DRAFT)
        assert not world.backend.emit(scope.account_id, operation, DRAFT)
        assert world.drain() == [replace(DRAFT, id=operation, revision=2)]

    def test_it_releases_what_an_emitted_operation_turns_out_to_hold(self, world: World) -> None:
        scope, operation = a_scope(), an_operation()
        reserved(world, scope, operation)
        world.backend.emit(scope.account_id, operation, DRAFT)
        used = usage(world, scope)
        assert (used.slots, used.reserved, used.settled) == (0, Amount(), Amount())

    def test_it_charges_an_operation_it_does_not_know(self, world: World) -> None:
        scope, operation = a_scope(), an_operation()
        world.database.ledgers[scope.subjects[0].name, NOVEMBER] = Amount(100, 1)
        assert settle(world, scope, operation, 30) == Settlement(Amount(30, 30_000))
        assert usage(world, scope).settled == Amount(130, 30_001)
        assert usage(world, scope).tokens == 30
        assert settle(world, scope, operation, 30).duplicate

    def test_it_charges_once_what_was_served_while_it_was_away(self, world: World) -> None:
        scope, operations = a_scope(), [an_operation(), an_operation()]
        recorded_before_seed = world.clock.now
        world.clock.step(1)
        reserved(world, scope)
        world.clock.step(1)
        for operation, recorded_at in zip(operations, (recorded_before_seed, world.clock.now), strict=True):
            for _ in range(2):
                pending = Pending(scope, operation, recorded_at, Amount(10, 10), recorded_at, recorded_at)
                world.backend.pending.add(pending)
                assert world.backend.repair_once()
        assert usage(world, scope).settled == Amount(10, 10)


class TestLeases:
    def test_it_charges_the_bound_when_a_lease_runs_out(self, world: World) -> None:
        scope, operation = a_scope(concurrent_requests=1), an_operation()
        granted = reserved(world, scope, operation)
        world.clock.now = granted.lease_until - 1
        assert world.backend.reap(scope.shard) == 0
        world.clock.now = granted.lease_until
        assert world.backend.reap(scope.shard) == 1
        assert world.backend.reap(scope.shard) == 0
        used = usage(world, scope)
        assert (used.slots, used.reserved, used.settled) == (0, Amount(), Amount(100, 100_000))
        assert world.drain() == [
            replace(
                DRAFT,
                id=operation,
                revision=1,
                usage_source="bound",
                input_tokens=10,
                output_tokens=90,
                cost=100_000,
            )
        ]

    def test_it_frees_the_slot_of_a_dead_call_for_the_next_one_without_a_reaper(self, world: World) -> None:
        scope = a_scope(concurrent_requests=1)
        world.clock.now = reserved(world, scope).lease_until
        reserved(world, scope)
        used = usage(world, scope)
        assert (used.slots, used.settled) == (1, Amount(100, 100_000))  # the next one's; and the bound of the dead

    def test_it_keeps_what_is_renewed(self, world: World) -> None:
        scope, operation = a_scope(), an_operation()
        reserved(world, scope, operation)
        world.clock.step(15)
        assert world.backend.renew(scope.shard, [operation, "unknown"]) == {operation}
        world.clock.step(15)
        assert world.backend.reap(scope.shard) == 0
        world.clock.step(5)
        assert world.backend.reap(scope.shard) == 1
        assert world.backend.renew(scope.shard, [operation]) == frozenset()
        with pytest.raises(OperationClosed):
            reserve(world, scope, operation)

    def test_it_replaces_the_charge_once_on_a_late_settle(self, world: World) -> None:
        scope, operation = a_scope(tokens_per_minute=1000), an_operation()
        world.clock.now = reserved(world, scope, operation).lease_until
        world.backend.reap(scope.shard)
        world.clock.step(3)
        assert settle(world, scope, operation, 30) == Settlement(Amount(30, 30_000), late=True)
        assert settle(world, scope, operation, 31).duplicate
        used = usage(world, scope)
        assert (used.settled, used.tokens, used.slots) == (Amount(30, 30_000), 30, 0)
        assert [record.revision for record in world.drain()] == [1, 2]

    def test_it_replaces_the_charge_when_the_bound_has_left_the_window(self, world: World) -> None:
        scope, operation = a_scope(tokens_per_minute=1000), an_operation()
        world.clock.now = reserved(world, scope, operation).lease_until
        world.backend.reap(scope.shard)
        world.clock.step(100)
        assert settle(world, scope, operation, 130).overrun
        used = usage(world, scope)
        assert (used.settled, used.tokens) == (Amount(130, 130_000), 0)

    def test_it_reaps_no_more_than_it_is_asked_to(self, world: World) -> None:
        scope = a_scope()
        for _ in range(5):
            reserved(world, scope)
        world.clock.step(21)
        assert [world.backend.reap(scope.shard, at_most=3) for _ in range(3)] == [3, 2, 0]

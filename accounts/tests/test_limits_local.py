"""The limits of one process while the store is down: exact among its threads, and small."""

import threading
from collections.abc import Callable

import pytest

from accounts.limits.local import LocalLimiter
from accounts.limits.types import MINUTE, Amount, Bound, LimitName, Limits, LimitSet, Refusal, Reserved, Settlement
from accounts.tests.limits_fixtures import Clock, a_bound, a_scope, an_operation

LIMIT, TOKENS_EACH = 50, 7


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def local(clock: Clock) -> LocalLimiter:
    return LocalLimiter(clock)


def reserve(local: LocalLimiter, scope: LimitSet, operation: str = "", attempt: int = 1) -> Reserved | Refusal:
    return local.reserve(scope, operation or an_operation(), bound=a_bound(), attempt=attempt)


def race(attempt: Callable[[], bool]) -> int:
    """Try twenty times from each of eight threads at once, and count how often it went well."""
    passed: list[bool] = []
    start = threading.Barrier(8)

    def run() -> None:
        start.wait()
        passed.extend(attempt() for _ in range(20))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(passed)


def test_it_is_exact_among_threads(local: LocalLimiter) -> None:
    rate = a_scope(requests_per_minute=LIMIT)
    assert race(lambda: local.admit(rate).admitted) == LIMIT
    for limits in (
        Limits(concurrent_requests=LIMIT),
        Limits(tokens_per_minute=LIMIT * TOKENS_EACH + TOKENS_EACH - 1),
    ):
        scope = a_scope(limits)

        def attempt(scope: LimitSet = scope) -> bool:
            bound = Bound(Amount(TOKENS_EACH, 1))
            return isinstance(local.reserve(scope, an_operation(), bound=bound, attempt=1), Reserved)

        assert race(attempt) == LIMIT


def test_it_never_admits_more_in_any_minute_and_says_when_there_is_a_place(local: LocalLimiter, clock: Clock) -> None:
    scope = a_scope(requests_per_minute=2)
    assert local.admit(scope).admitted
    clock.step(20)
    assert local.admit(scope, counts=False).admitted
    assert local.admit(scope).admitted
    refused = local.admit(scope)
    assert refused.refusal is not None
    assert (refused.admitted, refused.refusal.used, refused.refusal.retry_after) == (False, 2, 40)
    clock.step(40)
    assert local.admit(scope).admitted
    assert not local.admit(scope).admitted


def test_it_holds_the_bound_and_then_what_was_used(local: LocalLimiter, clock: Clock) -> None:
    scope, operation = a_scope(tokens_per_minute=150), an_operation()
    answer = reserve(local, scope, operation)
    assert isinstance(answer, Reserved)
    assert answer.held == Amount(100, 100_000)
    refusal = reserve(local, scope)
    assert isinstance(refusal, Refusal)
    assert (refusal.limit, refusal.used) == (LimitName.TOKENS_PER_MINUTE, 100)
    assert local.settle(operation, Amount(50, 50)) == Settlement(Amount(50, 50))
    assert local.settle(operation, Amount(50, 50)) is None
    operation = an_operation()
    assert isinstance(reserve(local, scope, operation), Reserved)
    assert local.settle(operation, Amount(101, 101)) == Settlement(Amount(101, 101), overrun=True)
    clock.step(60)
    assert isinstance(reserve(local, scope), Reserved)


def test_it_cuts_an_answer_to_what_is_left(local: LocalLimiter) -> None:
    scope = a_scope(tokens_per_minute=60)
    answer = local.reserve(scope, an_operation(), bound=a_bound(10, 90, minimum_output=1), attempt=1)
    assert isinstance(answer, Reserved)
    assert (answer.output_tokens, answer.held.tokens) == (50, 60)


def test_it_adds_a_further_attempt_without_a_slot(local: LocalLimiter) -> None:
    scope, operation = a_scope(concurrent_requests=1), an_operation()
    first = reserve(local, scope, operation)
    assert reserve(local, scope, operation) == first, "the same attempt changes nothing"
    second = reserve(local, scope, operation, attempt=2)
    assert isinstance(second, Reserved)
    assert second.held == Amount(200, 200_000)
    assert isinstance(reserve(local, scope), Refusal)
    assert local.holds(operation)
    local.settle(operation, Amount(1, 1))
    assert not local.holds(operation)
    assert isinstance(reserve(local, scope), Reserved)


def test_it_forgets_subjects_that_use_nothing(local: LocalLimiter, clock: Clock) -> None:
    open_scope = a_scope()
    reserve(local, open_scope)
    for _ in range(100):
        local.admit(a_scope())
    clock.now += MINUTE
    local.admit(a_scope())
    assert set(local._uses) >= {subject.name for subject in open_scope.subjects}
    assert len(local._uses) == 4

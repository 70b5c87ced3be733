"""Single flight by the reservation: one call leads, identical ones elsewhere follow and take nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import redis as redis_client

from accounts.limits.types import (
    Amount,
    FlightClaim,
    InFlight,
    LimitSet,
    OperationClosed,
    Refusal,
    Reserved,
)
from accounts.tests.limits_fixtures import DRAFT, Clock, a_bound, a_scope, an_operation, limits_on, shared_redis_url
from launch.environment import free_port
from tests.processes import wait_until
from tests.stores import Redis, redis_cluster

LIFE = 1.0  # seconds that a process is taken to live after its last heartbeat


@dataclass
class Process:
    """One process: its limits on a store."""

    clock: Clock | None
    url: str

    def __post_init__(self) -> None:
        self.limits = limits_on(self.url, clock=self.clock)

    def reserve(
        self, scope: LimitSet, operation: str, *, since: int | None = None, attempt: int = 1, **bound: Any
    ) -> Reserved | Refusal | InFlight:
        """Ask to lead the flight of the scope's one question."""
        now = self.limits.now() if since is None else since
        return self.limits.reserve(
            scope,
            operation,
            admitted_at=self.limits.now(),
            bound=a_bound(**bound),
            draft=DRAFT,
            attempt=attempt,
            flight=FlightClaim(key_of(scope), now),
        )

    def lead(self, scope: LimitSet, **options: Any) -> str:
        """Begin to lead, and return the operation."""
        operation = an_operation()
        answer = self.reserve(scope, operation, **options)
        assert isinstance(answer, Reserved), answer
        assert answer.leads_flight
        assert self.limits.leads_flight(operation)
        return operation

    def settle(self, scope: LimitSet, operation: str, error: str = "") -> None:
        """End the call."""
        used, at = Amount(10, 10), self.limits.now()
        self.limits.settle(scope, operation, admitted_at=at, used=used, record=DRAFT, flight_error=error)

    def follow(self, scope: LimitSet, **options: Any) -> InFlight:
        """Ask, and be referred to another call."""
        answer = self.reserve(scope, an_operation(), **options)
        assert isinstance(answer, InFlight), answer
        return answer

    def die(self) -> None:
        """Show no further sign of life."""
        self.limits.end()
        self.limits.store.end()

    def held(self, scope: LimitSet) -> tuple[int, int]:
        """Return tokens and slots in use."""
        usage = self.limits.usage(scope)[0]
        return usage.reserved.tokens, usage.slots


def key_of(scope: LimitSet) -> str:
    """Return the key of the one question that the scope's callers ask."""
    return f"key-{scope.account_id}"


@pytest.fixture
def clock() -> Clock:
    """Return the clock of the store."""
    return Clock()


Start = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts a process, which ends with the test."""
    with ExitStack() as stack:

        def process(clock: Clock | None, url: str = "") -> Process:
            started = Process(clock, url or shared_redis_url())
            stack.callback(started.die)
            return started

        yield process


@pytest.fixture
def two(start: Start, clock: Clock) -> tuple[Process, Process]:
    """Run two processes on one store."""
    return start(clock), start(clock)


def test_it_lets_one_lead_and_all_others_follow(two: tuple[Process, Process], clock: Clock) -> None:
    (one, _), scope = two, a_scope()
    operation = one.lead(scope)
    for process in two:
        assert process.follow(scope) == InFlight(is_open=True, at=clock.now)
    assert one.held(scope) == (100, 1), "who follows takes nothing"
    one.settle(scope, operation)
    assert not one.limits.leads_flight(operation)


def test_it_keeps_flights_apart(two: tuple[Process, Process]) -> None:
    (one, other), scope = two, a_scope()
    one.lead(scope)
    other.lead(a_scope())
    assert isinstance(other.reserve(a_scope(), an_operation()), Reserved)


def test_it_refers_a_caller_whose_own_limits_are_spent(two: tuple[Process, Process]) -> None:
    (one, other), scope = two, a_scope(concurrent_requests=1)
    one.lead(scope)
    assert other.follow(scope).is_open


def test_it_tells_once_to_look_again_after_a_flight(two: tuple[Process, Process], clock: Clock) -> None:
    (one, other), scope = two, a_scope()
    admitted_at, operation = clock.now, one.lead(scope)
    clock.step(1)
    one.settle(scope, operation)
    clock.step(1)
    told = other.follow(scope, since=admitted_at)
    assert told == InFlight(is_open=False, at=clock.now)
    other.lead(scope, since=told.at)


def test_it_does_not_send_back_who_came_after_the_end(two: tuple[Process, Process], clock: Clock) -> None:
    (one, other), scope = two, a_scope()
    one.settle(scope, one.lead(scope), error="broken")
    clock.now += 1
    other.settle(scope, other.lead(scope))
    clock.now += 1
    assert one.lead(scope), "it leads at once"


def test_it_shares_a_failure_with_those_who_waited(two: tuple[Process, Process], clock: Clock) -> None:
    (one, other), scope = two, a_scope()
    operation, since = one.lead(scope), clock.now
    clock.step(1)
    one.settle(scope, operation, error='["é"]')
    failed_at = clock.now
    clock.step(2)
    assert other.follow(scope, since=since) == InFlight(is_open=False, at=failed_at, error='["é"]')
    other.lead(scope)


def test_it_shares_no_failure_once_another_call_has_succeeded(two: tuple[Process, Process], clock: Clock) -> None:
    (one, other), scope = two, a_scope()
    since = clock.now
    one.settle(scope, one.lead(scope), error="broken")
    clock.step(1)
    one.settle(scope, one.lead(scope))
    assert other.follow(scope, since=since).error == ""


def test_it_shares_no_answer_that_a_limit_cut(two: tuple[Process, Process]) -> None:
    (one, other), scope = two, a_scope(tokens_per_minute=150)
    operation = an_operation()
    answer = one.reserve(scope, operation, prompt=10, output=200, minimum_output=1)
    assert isinstance(answer, Reserved)
    assert (answer.output_tokens, answer.leads_flight) == (140, False)
    assert not one.limits.leads_flight(operation)
    assert isinstance(other.reserve(scope, an_operation()), Refusal), "the limits decide"
    one.settle(scope, operation)
    other.lead(scope)


def test_it_gives_the_same_answer_to_a_repeated_attempt(two: tuple[Process, Process]) -> None:
    (one, _), scope = two, a_scope()
    operation = one.lead(scope)
    again = one.reserve(scope, operation)
    assert isinstance(again, Reserved)
    assert again.leads_flight
    one.settle(scope, operation)
    with pytest.raises(OperationClosed):
        one.reserve(scope, operation)


def test_it_keeps_the_flight_in_a_further_attempt(two: tuple[Process, Process]) -> None:
    (one, other), scope = two, a_scope()
    operation = one.lead(scope)
    further = one.limits.reserve(
        scope, operation, admitted_at=one.limits.now(), bound=a_bound(), draft=DRAFT, attempt=2
    )
    assert isinstance(further, Reserved)
    assert further.leads_flight
    assert other.follow(scope).is_open


def test_it_ends_a_flight_with_the_lease_of_a_call(two: tuple[Process, Process], clock: Clock) -> None:
    (one, other), scope = two, a_scope()
    operation, since = one.lead(scope), clock.now
    clock.step(one.limits.lease_seconds + 1)
    assert other.limits.reap(scope.shard) == 1
    assert other.follow(scope, since=since) == InFlight(is_open=False, at=clock.now)
    clock.now += 1
    other.lead(scope)
    one.settle(scope, operation)
    assert one.follow(scope).is_open, "a late settle ends nobody's flight"


def test_it_gives_the_flight_of_a_dead_process_to_the_next_that_asks(two: tuple[Process, Process]) -> None:
    (one, other), scope = two, a_scope(concurrent_requests=2)
    operation, taken = one.lead(scope), an_operation()
    one.die()
    assert other.follow(scope).is_open
    wait_until(lambda: isinstance(other.reserve(scope, taken), Reserved), "the flight", 2 * LIFE)
    assert one.held(scope) == (200, 2), "the bound of the dead call stays until it is reaped"
    one.settle(scope, operation)
    assert one.follow(scope).is_open, "the new leader's flight goes on"
    assert other.limits.leads_flight(taken)


def test_it_keeps_the_flights_of_a_process_that_lives(
    two: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many they are, one round trip keeps them all; here it is a slow one."""
    (one, other), scopes = two, [a_scope() for _ in range(100)]
    call_each = one.limits.store.wire.call_each

    def slowly(*parts: Any) -> list[Any]:
        time.sleep(LIFE / 8)
        return call_each(*parts)

    monkeypatch.setattr(one.limits.store.wire, "call_each", slowly)
    operations = [one.lead(scope) for scope in scopes]
    ends = time.monotonic() + 2.5 * LIFE
    while time.monotonic() < ends:
        assert all(other.follow(scope).is_open for scope in scopes)
        time.sleep(LIFE / 10)
    assert all(map(one.limits.leads_flight, operations))


def test_it_notices_that_its_flight_was_taken_over(
    two: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    (one, other), scope = two, a_scope()
    with monkeypatch.context() as stalled:
        stalled.setattr(one.limits.store, "call_each", lambda *scripts: 1 / 0)
        operation, taken = one.lead(scope), an_operation()
        wait_until(lambda: isinstance(other.reserve(scope, taken), Reserved), "the flight", 2 * LIFE)
        assert one.limits.leads_flight(operation)
    wait_until(lambda: not one.limits.leads_flight(operation), "the old leader to learn of it", 2 * LIFE)
    assert other.limits.leads_flight(taken)


def test_it_knows_whether_somebody_waits_elsewhere(two: tuple[Process, Process]) -> None:
    (one, other), scope = two, a_scope()
    operation = one.lead(scope)
    assert not one.limits.is_awaited(operation)
    other.follow(scope)
    assert one.limits.is_awaited(operation)
    wait_until(lambda: not one.limits.is_awaited(operation), "the mark to fade", 3)
    other.follow(scope)
    one.settle(scope, operation)
    assert not one.limits.is_awaited(operation)


def test_it_ends_a_flight_in_a_redis_that_is_full(start: Start, redis: Redis, clock: Clock) -> None:
    one, other, scope = start(clock, redis.url), start(clock, redis.url), a_scope()
    operation, since = one.lead(scope), clock.now
    with redis_client.Redis.from_url(redis.url) as client:
        client.config_set("maxmemory", 1)
        try:
            one.settle(scope, operation)
        finally:
            client.config_set("maxmemory", 0)
    assert not other.follow(scope, since=since).is_open
    assert one.held(scope) == (0, 0)


def test_it_leads_without_a_flight_while_redis_is_away(start: Start) -> None:
    process, scope = start(None, f"redis://127.0.0.1:{free_port()}/0"), a_scope()
    operation = an_operation()
    for asked in (operation, an_operation()):
        answer = process.reserve(scope, asked)
        assert isinstance(answer, Reserved)
        assert not answer.leads_flight
    assert not process.limits.is_awaited(operation)


def test_it_does_all_that_on_a_cluster(start: Start) -> None:
    with redis_cluster() as nodes:
        url = f"redis+cluster://127.0.0.1:{nodes[0].port}"
        one, other = start(None, url), start(None, url)
        scopes = [a_scope() for _ in range(20)]
        operations = [one.lead(scope) for scope in scopes]
        since = one.limits.now()
        time.sleep(2 * LIFE)
        assert all(other.follow(scope).is_open for scope in scopes)
        assert all(map(one.limits.leads_flight, operations))
        assert one.limits.is_awaited(operations[0])
        one.settle(scopes[0], operations[0], error="broken")
        assert other.follow(scopes[0], since=since).error == "broken"
        one.die()
        wait_until(lambda: isinstance(other.reserve(scopes[1], "taken"), Reserved), "the flight", 2 * LIFE)

"""A provider's own limits: the same in Redis and in a process by itself, and exact among processes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from typing import Any

import pytest
import redis
from redis.exceptions import ResponseError

from accounts.limits.backend import LimitBackend
from accounts.limits.scripts import prefix_of
from accounts.limits.types import (
    NO_ACCOUNT,
    SECOND,
    SHARDS,
    Amount,
    Bound,
    LimitName,
    Limits,
    LimitSet,
    Refusal,
    Reserved,
    Subject,
)
from accounts.tests.limits_fixtures import DRAFT, Clock, an_operation, limits_on, shared_redis_url

_numbers = itertools.count(1)
PROCESSES, THREADS, TRIES, LIMIT, TOKENS_EACH = 2, 8, 10, 50, 7
KINDS = {
    "requests": Limits(requests_per_minute=LIMIT),
    "tokens": Limits(tokens_per_minute=LIMIT * TOKENS_EACH + TOKENS_EACH - 1),
    "concurrency": Limits(concurrent_requests=LIMIT),
}


@dataclass
class Held:
    """A reservation at a provider."""

    backend: LimitBackend
    scope: LimitSet
    operation: str
    tokens: int

    def leave(self, used: int | None = None) -> None:
        """Settle with so many tokens: all that it holds unless they are told."""
        amount = Amount(self.tokens if used is None else used)
        self.backend.settle(self.scope, self.operation, admitted_at=0, used=amount, record=None)


@dataclass
class World:
    """A backend with the clock that moves it."""

    backend: LimitBackend
    clock: Clock

    def enter(self, scope: LimitSet, tokens: int = 10, operation: str = "") -> Held | Refusal:
        """Reserve, as an operation of its own unless one is named."""
        return enter(self.backend, scope, tokens, operation)

    def entered(self, scope: LimitSet, tokens: int = 10, operation: str = "") -> Held:
        """Reserve, where there is room."""
        answer = self.enter(scope, tokens, operation)
        assert isinstance(answer, Held), answer
        return answer

    def refused(self, scope: LimitSet, tokens: int = 10) -> Refusal:
        """Reserve, where there is no room."""
        answer = self.enter(scope, tokens)
        assert isinstance(answer, Refusal)
        return answer


def enter(backend: LimitBackend, scope: LimitSet, tokens: int, operation: str = "") -> Held | Refusal:
    operation = operation or an_operation()
    answer = backend.reserve(scope, operation, admitted_at=0, bound=Bound(Amount(tokens)), draft=DRAFT)
    if isinstance(answer, Reserved):
        return Held(backend, scope, operation, tokens)
    assert isinstance(answer, Refusal)
    return answer


def a_provider(limits: Limits) -> LimitSet:
    """Make the limits of a provider that nobody has used before."""
    return LimitSet.of_provider(next(_numbers) + os.getpid() * 100_000, limits)


def no_ledger(subjects: Sequence[Subject], month: int) -> dict[Subject, Amount]:
    """Stand in for the database, which is never asked."""
    raise AssertionError("a provider has no ledger")


def redis_backend(clock: Clock | None = None, url: str = "", lease_seconds: int = 20) -> LimitBackend:
    """Make a backend over the shared Redis."""
    return limits_on(
        url, seeder=no_ledger, lease_seconds=lease_seconds, clock=clock, read_timeout=10, start=lambda target: None
    )


def alone(clock: Clock) -> LimitBackend:
    """Make the backend of a process whose Redis is down."""
    backend = redis_backend(clock)
    backend.store.is_away = True
    return backend


@pytest.fixture(params=["local", "redis"])
def world(request: pytest.FixtureRequest) -> World:
    """Give a world with Redis, and one of a process by itself."""
    clock = Clock()
    return World(alone(clock) if request.param == "local" else redis_backend(clock), clock)


def test_it_counts_the_requests_of_any_minute(world: World) -> None:
    scope = a_provider(Limits(requests_per_minute=2))
    world.entered(scope).leave(0)
    world.clock.step(20)
    world.entered(scope).leave(0)
    refusal = world.refused(scope)
    assert (refusal.limit, refusal.used, refusal.limit_value) == (LimitName.REQUESTS_PER_MINUTE, 2, 2)
    assert refusal.retry_after == 40
    world.clock.step(40)
    world.entered(scope)


def test_it_survives_a_clock_that_is_set_back(world: World) -> None:
    scope = a_provider(Limits(requests_per_minute=1))
    world.entered(scope)
    world.clock.step(-1)
    assert world.refused(scope).limit is LimitName.REQUESTS_PER_MINUTE
    world.clock.step(-100)
    world.entered(scope)
    assert world.refused(scope).retry_after == 60  # by the clock as it is now


def test_it_bounds_the_calls_at_once(world: World) -> None:
    scope = a_provider(Limits(concurrent_requests=2))
    first, second = world.entered(scope), world.entered(scope)
    refusal = world.refused(scope)
    assert (refusal.limit, refusal.used, refusal.retry_after) == (LimitName.CONCURRENT_REQUESTS, 2, 1)
    first.leave(0)
    first.leave(0)
    world.entered(scope)
    world.refused(scope)
    second.leave()
    world.entered(scope)


def test_it_holds_tokens_and_counts_those_that_were_used(world: World) -> None:
    scope = a_provider(Limits(tokens_per_minute=100))
    entry = world.entered(scope, 80)
    assert world.refused(scope, 21).used == 80
    entry.leave(30)
    other = world.entered(scope, 70)
    other.leave()
    refusal = world.refused(scope, 1)
    assert (refusal.used, refusal.impossible) == (100, False)
    assert 60 <= refusal.retry_after <= 61
    world.clock.step(61)
    world.entered(scope, 100)


def test_it_says_what_can_never_fit(world: World) -> None:
    assert world.refused(a_provider(Limits(tokens_per_minute=100)), 101).impossible


def test_it_takes_nothing_where_one_of_its_limits_has_no_room(world: World) -> None:
    scope = a_provider(Limits(requests_per_minute=1, tokens_per_minute=100, concurrent_requests=5))
    assert world.refused(scope, 101).limit is LimitName.TOKENS_PER_MINUTE
    world.entered(scope, 100)
    refusal = world.refused(scope, 1)
    assert (refusal.limit, refusal.used) == (LimitName.REQUESTS_PER_MINUTE, 1)


def test_it_keeps_subjects_apart(world: World) -> None:
    limits = Limits(concurrent_requests=1)
    first, second = a_provider(limits), a_provider(limits)
    world.entered(first)
    world.entered(second)
    assert [world.refused(each).used for each in (first, second)] == [1, 1]


class TestRedis:
    @pytest.fixture
    def world(self) -> World:
        """Give a world with Redis and a clock that only the test moves."""
        clock = Clock()
        return World(redis_backend(clock), clock)

    def test_it_enters_once_an_operation_whose_reply_was_lost(self, world: World) -> None:
        limits = Limits(requests_per_minute=2, tokens_per_minute=20, concurrent_requests=1)
        scope, operation = a_provider(limits), an_operation()
        world.entered(scope, operation=operation)
        again = world.entered(scope, operation=operation)
        assert world.refused(scope).used == 1
        again.leave(0)
        world.entered(scope)

    def test_it_frees_the_slot_of_who_died_and_counts_all_that_it_held(self, world: World) -> None:
        scope = a_provider(Limits(tokens_per_minute=100, concurrent_requests=1))
        world.entered(scope, 60)
        world.clock.step(21)
        assert world.refused(scope, 41).used == 60
        world.entered(scope, 40).leave(0)
        assert world.refused(scope, 41).used == 60

    def test_it_corrects_that_where_a_late_settle_tells_what_was_used(self, world: World) -> None:
        scope = a_provider(Limits(tokens_per_minute=100, concurrent_requests=1))
        slow = world.entered(scope, 60)
        world.clock.step(21)
        other = world.entered(scope, 40)
        slow.leave(30)
        slow.leave(30)
        assert world.refused(scope, 31).limit is LimitName.TOKENS_PER_MINUTE
        assert world.refused(scope, 30).limit is LimitName.CONCURRENT_REQUESTS, "the slot of the other stays"
        other.leave(40)
        world.entered(scope, 30)

    def test_it_keeps_the_slot_of_who_renews(self, world: World) -> None:
        scope = a_provider(Limits(concurrent_requests=1))
        world.entered(scope, operation="long")
        world.clock.step(15)
        assert world.backend.renew(scope.shard, ["long"]) == {"long"}
        world.clock.step(15)
        world.refused(scope)

    def test_it_leaves_no_record_and_no_ledger_however_a_reservation_ends(self, world: World) -> None:
        scope = a_provider(Limits(requests_per_minute=9, tokens_per_minute=99, concurrent_requests=9))
        world.entered(scope).leave(5)
        world.entered(scope)
        world.clock.step(21)
        assert world.backend.reap(scope.shard) == 1
        prefix, name = prefix_of(scope.shard), scope.subjects[0].name
        with redis.Redis.from_url(shared_redis_url()) as client:
            kept = {key.decode().removeprefix(prefix) for key in client.keys(f"{prefix}*")}
        operations = {key for key in kept if key.startswith("o:")}
        assert (kept - operations, len(operations)) == ({f"{name}:q", f"{name}:w"}, 2)

    def test_it_charges_nothing_that_an_emptied_redis_has_forgotten(self, world: World) -> None:
        scope = a_provider(Limits(tokens_per_minute=10))
        Held(world.backend, scope, an_operation(), 10).leave(10)
        assert isinstance(world.enter(scope, 10), Held), "all of the limit is left"

    def test_it_has_a_shard_for_each_provider_apart_from_those_of_accounts(self) -> None:
        first, second = (LimitSet.of_provider(number, Limits()) for number in (1, 65))
        assert len({first.shard, second.shard, *range(SHARDS)}) == SHARDS + 2
        assert first.account_id == NO_ACCOUNT


class TestAway:
    def test_it_goes_on_in_the_process_while_redis_is_away(self) -> None:
        limits = redis_backend()
        world, scope = World(limits, Clock()), a_provider(Limits(concurrent_requests=1))
        shared = world.entered(scope)
        world.refused(scope)
        limits.store.is_away = True
        single = world.entered(scope)
        world.refused(scope)
        limits.store.is_away = False
        single.leave(0)
        world.refused(scope)  # Redis knows of the shared one alone
        shared.leave(0)
        world.entered(scope)
        assert not limits.pending

    def test_it_frees_in_redis_what_ended_while_redis_was_away(self) -> None:
        limits = redis_backend()
        world, scope = World(limits, Clock()), a_provider(Limits(tokens_per_minute=10, concurrent_requests=1))
        shared = world.entered(scope, 10)
        limits.store.is_away = True
        shared.leave(3)
        assert limits.repair_once()
        world.entered(scope, 7)

    def test_it_goes_on_in_the_process_where_redis_answers_and_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*arguments: Any) -> Any:
            raise ResponseError("OOM command not allowed")

        limits = redis_backend()
        world, scope = World(limits, Clock()), a_provider(Limits(concurrent_requests=1))
        monkeypatch.setattr(limits.store, "call", fail)
        world.entered(scope)
        world.refused(scope)
        assert not limits.pending


def race(backend: LimitBackend, scope: LimitSet) -> list[Held | Refusal]:
    """Try to reserve from all threads at once, and stay."""
    results: list[Held | Refusal] = []
    start = threading.Barrier(THREADS)

    def run() -> None:
        start.wait()
        results.extend(enter(backend, scope, TOKENS_EACH) for _ in range(TRIES))

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def worker(url: str, scopes: list[LimitSet], together: Barrier, counts: Any) -> None:
    """Race for each provider in one process, begun together with the others."""
    backend = redis_backend(url=url, lease_seconds=60)
    for number, scope in enumerate(scopes):
        together.wait()
        counts.put((number, sum(isinstance(answer, Held) for answer in race(backend, scope))))


def test_it_is_exact_among_processes() -> None:
    scopes = [a_provider(limits) for limits in KINDS.values()]
    context = multiprocessing.get_context("spawn")
    together, queue = context.Barrier(PROCESSES), context.Queue()
    arguments = (shared_redis_url(), scopes, together, queue)
    processes = [context.Process(target=worker, args=arguments, daemon=True) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    seen = [queue.get(timeout=60) for _ in range(PROCESSES * len(scopes))]
    for process in processes:
        process.join()
    entered = {kind: sum(count for number, count in seen if number == i) for i, kind in enumerate(KINDS)}
    assert entered == dict.fromkeys(KINDS, LIMIT)


@pytest.mark.parametrize("kind", list(KINDS))
def test_it_is_exact_among_the_threads_of_one_process(kind: str) -> None:
    answers = race(alone(Clock()), a_provider(KINDS[kind]))
    assert sum(isinstance(answer, Held) for answer in answers) == LIMIT


def test_it_says_after_how_many_seconds_by_the_stores_own_clock() -> None:
    scope, backend = a_provider(Limits(requests_per_minute=1)), redis_backend()
    enter(backend, scope, 1)
    refusal = enter(backend, scope, 1)
    assert isinstance(refusal, Refusal)
    assert 59 * SECOND < refusal.reset_at - refusal.at <= 60 * SECOND

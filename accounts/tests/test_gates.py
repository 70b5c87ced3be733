"""The limits of what all accounts share: the same over both stores, and exact among processes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from typing import Any

import pytest

from accounts.limits import gates as gates_module
from accounts.limits.failover import FailoverBackend
from accounts.limits.gates import Entry, Gates, RedisGates, gate_prefix, get_gates
from accounts.limits.local import LocalLimiter
from accounts.limits.redis import RedisBackend, redis_client, wire_for
from accounts.limits.types import SECOND, LimitName, Limits, Refusal, Subject
from accounts.tests.limits_fixtures import Clock, Database, an_operation, shared_redis_url

_numbers = itertools.count(1)
PROCESSES, THREADS, TRIES, LIMIT, TOKENS_EACH = 2, 8, 10, 50, 7
KINDS = {
    "requests": Limits(requests_per_minute=LIMIT),
    "tokens": Limits(tokens_per_minute=LIMIT * TOKENS_EACH + TOKENS_EACH - 1),
    "concurrency": Limits(concurrent_requests=LIMIT),
}


class LocalGates:
    """The limits as a process keeps them while Redis is away."""

    def __init__(self, clock: Clock) -> None:
        self._local = LocalLimiter(clock)

    def enter(self, subject: Subject, operation: str, tokens: int) -> Entry | Refusal:
        refusal = self._local.enter(subject, tokens)
        return refusal or Entry(tokens, lambda used: self._local.leave(subject, tokens, used))


AnyGates = RedisGates | Gates | LocalGates


@dataclass
class World:
    """Gates with the clock that moves them."""

    gates: AnyGates
    clock: Clock

    def enter(self, subject: Subject, tokens: int = 10, operation: str = "") -> Entry | Refusal:
        """Enter, as an operation of its own unless one is named."""
        return self.gates.enter(subject, operation or an_operation(), tokens)

    def entered(self, subject: Subject, tokens: int = 10, operation: str = "") -> Entry:
        """Enter, where there is room."""
        answer = self.enter(subject, tokens, operation)
        assert isinstance(answer, Entry), answer
        return answer

    def refused(self, subject: Subject, tokens: int = 10) -> Refusal:
        """Enter, where there is no room."""
        answer = self.enter(subject, tokens)
        assert isinstance(answer, Refusal)
        return answer


def a_provider(limits: Limits) -> Subject:
    """Make a subject that nobody has used before."""
    return Subject("provider", str(next(_numbers) + os.getpid() * 100_000), limits)


def redis_gates(clock: Clock | None = None) -> RedisGates:
    """Make gates over the shared Redis."""
    return RedisGates(wire_for(redis_client(shared_redis_url(), read_timeout=10)), lease_seconds=20, clock=clock)


@pytest.fixture(params=["local", "redis"])
def world(request: pytest.FixtureRequest) -> World:
    """Give a world for each of the stores in turn."""
    clock = Clock()
    return World(LocalGates(clock) if request.param == "local" else redis_gates(clock), clock)


def test_it_counts_the_requests_of_any_minute(world: World) -> None:
    subject = a_provider(Limits(requests_per_minute=2))
    world.entered(subject).leave(0)
    world.clock.step(20)
    world.entered(subject).leave(0)
    refusal = world.refused(subject)
    assert (refusal.limit, refusal.used, refusal.limit_value) == (LimitName.REQUESTS_PER_MINUTE, 2, 2)
    assert refusal.retry_after == 40
    world.clock.step(40)
    world.entered(subject)


def test_it_survives_a_clock_that_is_set_back(world: World) -> None:
    subject = a_provider(Limits(requests_per_minute=1))
    world.entered(subject)
    world.clock.step(-1)
    assert world.refused(subject).limit is LimitName.REQUESTS_PER_MINUTE
    world.clock.step(-100)
    world.entered(subject)
    assert world.refused(subject).retry_after == 60  # by the clock as it is now


def test_it_bounds_the_calls_at_once(world: World) -> None:
    subject = a_provider(Limits(concurrent_requests=2))
    first, second = world.entered(subject), world.entered(subject)
    refusal = world.refused(subject)
    assert (refusal.limit, refusal.used, refusal.retry_after) == (LimitName.CONCURRENT_REQUESTS, 2, 1)
    first.leave(0)
    first.leave(0)
    world.entered(subject)
    world.refused(subject)
    second.leave()
    world.entered(subject)


def test_it_holds_tokens_and_counts_those_that_were_used(world: World) -> None:
    subject = a_provider(Limits(tokens_per_minute=100))
    entry = world.entered(subject, 80)
    assert world.refused(subject, 21).used == 80
    entry.leave(30)
    other = world.entered(subject, 70)
    other.leave()
    refusal = world.refused(subject, 1)
    assert (refusal.used, refusal.impossible) == (100, False)
    assert 60 <= refusal.retry_after <= 61
    world.clock.step(61)
    world.entered(subject, 100)


def test_it_says_what_can_never_fit(world: World) -> None:
    assert world.refused(a_provider(Limits(tokens_per_minute=100)), 101).impossible


def test_it_takes_nothing_where_one_of_its_limits_has_no_room(world: World) -> None:
    subject = a_provider(Limits(requests_per_minute=1, tokens_per_minute=100, concurrent_requests=5))
    assert world.refused(subject, 101).limit is LimitName.TOKENS_PER_MINUTE
    world.entered(subject, 100)
    refusal = world.refused(subject, 1)
    assert (refusal.limit, refusal.used) == (LimitName.REQUESTS_PER_MINUTE, 1)


def test_it_keeps_subjects_apart(world: World) -> None:
    limits = Limits(concurrent_requests=1)
    first, second = a_provider(limits), a_provider(limits)
    world.entered(first)
    world.entered(second)
    assert [world.refused(each).used for each in (first, second)] == [1, 1]


class TestRedis:
    @pytest.fixture
    def clock(self) -> Clock:
        """Return a clock that only the test moves."""
        return Clock()

    def test_it_enters_once_an_operation_whose_reply_was_lost(self, clock: Clock) -> None:
        world, subject = World(redis_gates(clock), clock), a_provider(Limits(concurrent_requests=1))
        world.entered(subject, operation="again")
        again = world.entered(subject, operation="again")
        assert world.refused(subject).used == 1
        again.leave(0)
        world.entered(subject)

    def test_it_frees_the_slot_of_who_died_and_counts_all_that_it_held(self, clock: Clock) -> None:
        subject = a_provider(Limits(tokens_per_minute=100, concurrent_requests=1))
        world = World(redis_gates(clock), clock)
        dead = world.entered(subject, 60)
        clock.step(21)
        assert world.refused(subject, 41).used == 60
        alive = world.entered(subject, 40)
        dead.leave(0)  # late: what was held counts
        alive.leave(0)
        assert world.refused(subject, 41).used == 60

    def test_it_keeps_the_slot_of_who_renews(self, clock: Clock) -> None:
        subject, shared = a_provider(Limits(concurrent_requests=1)), redis_gates(clock)
        shared.enter(subject, "long", 1)
        clock.step(15)
        shared.renew(subject.name, ["long"])
        clock.step(15)
        assert isinstance(shared.enter(subject, "other", 1), Refusal)

    def test_it_has_a_hash_tag_for_each_subject(self) -> None:
        assert gate_prefix("provider:17") == "aiapi:{provider:17}:"


class TestAway:
    def make(self, *, is_away: Callable[[], bool]) -> Gates:
        """Make gates over the shared Redis, as far as that is not away."""
        wire = wire_for(redis_client(shared_redis_url(), read_timeout=10))

        def probe() -> None:
            if is_away():
                raise ConnectionError

        primary = RedisBackend(wire, seeder=Database())
        limits = FailoverBackend(primary, probe=probe, sink=lambda record: None, start=lambda mend: None)
        return Gates(limits, redis_gates())

    def test_it_goes_on_in_the_process_while_redis_is_away(self) -> None:
        away = [False]
        gates, subject = self.make(is_away=lambda: away[0]), a_provider(Limits(concurrent_requests=1))
        shared = gates.enter(subject, an_operation(), 1)
        assert isinstance(shared, Entry)
        assert isinstance(gates.enter(subject, an_operation(), 1), Refusal)
        gates._limits.breaker.is_open = away[0] = True
        alone = gates.enter(subject, an_operation(), 1)
        assert isinstance(alone, Entry)
        assert isinstance(gates.enter(subject, an_operation(), 1), Refusal)
        gates._limits.breaker.is_open = away[0] = False
        alone.leave(0)
        assert isinstance(gates.enter(subject, an_operation(), 1), Refusal), "Redis knows of the shared one alone"
        shared.leave(0)
        assert isinstance(gates.enter(subject, an_operation(), 1), Entry)

    def test_it_renews_what_is_held_in_redis_until_it_is_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        renewed: list[Any] = []
        monkeypatch.setattr(RedisGates, "renew", lambda self, *what: renewed.append(what))
        gates, subject, operation = self.make(is_away=lambda: False), a_provider(Limits()), an_operation()
        entry = gates.enter(subject, operation, 1)
        assert isinstance(entry, Entry)
        gates_module.keeper.renew_due(0)
        assert (subject.name, [operation]) in renewed
        entry.leave()
        renewed.clear()
        gates_module.keeper.renew_due(0)
        assert (subject.name, [operation]) not in renewed


def test_it_stands_over_the_store_of_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = get_gates()
    assert get_gates() is gates
    primary = RedisBackend(wire_for(redis_client(shared_redis_url())), seeder=Database())
    backend = FailoverBackend(primary, probe=lambda: None, sink=lambda record: None)
    monkeypatch.setattr(gates_module, "get_limits", lambda: backend)
    assert get_gates() is not gates


def race(gates: AnyGates, subject: Subject) -> list[Entry | Refusal]:
    """Try to enter from all threads at once, and stay."""
    results: list[Entry | Refusal] = []
    start = threading.Barrier(THREADS)

    def run() -> None:
        start.wait()
        results.extend(gates.enter(subject, an_operation(), TOKENS_EACH) for _ in range(TRIES))

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def worker(url: str, subjects: list[Subject], together: Barrier, counts: Any) -> None:
    """Race for each subject in one process, begun together with the others."""
    gates = RedisGates(wire_for(redis_client(url, read_timeout=10)), lease_seconds=60)
    for number, subject in enumerate(subjects):
        together.wait()
        counts.put((number, sum(isinstance(answer, Entry) for answer in race(gates, subject))))


def test_it_is_exact_among_processes() -> None:
    subjects = [a_provider(limits) for limits in KINDS.values()]
    context = multiprocessing.get_context("spawn")
    together, queue = context.Barrier(PROCESSES), context.Queue()
    arguments = (shared_redis_url(), subjects, together, queue)
    processes = [context.Process(target=worker, args=arguments, daemon=True) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    seen = [queue.get(timeout=60) for _ in range(PROCESSES * len(subjects))]
    for process in processes:
        process.join()
    entered = {kind: sum(count for number, count in seen if number == i) for i, kind in enumerate(KINDS)}
    assert entered == dict.fromkeys(KINDS, LIMIT)


@pytest.mark.parametrize("kind", list(KINDS))
def test_it_is_exact_among_the_threads_of_one_process(kind: str) -> None:
    answers = race(LocalGates(Clock()), a_provider(KINDS[kind]))
    assert sum(isinstance(answer, Entry) for answer in answers) == LIMIT


def test_it_says_after_how_many_seconds_by_the_stores_own_clock() -> None:
    subject, gates = a_provider(Limits(requests_per_minute=1)), redis_gates()
    gates.enter(subject, an_operation(), 1)
    refusal = gates.enter(subject, an_operation(), 1)
    assert isinstance(refusal, Refusal)
    assert 59 * SECOND < refusal.reset_at - refusal.at <= 60 * SECOND

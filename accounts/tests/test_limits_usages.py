"""What is used, of many scopes at once: the same answers as one by one, without a step for each of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from accounts.limits.backend import LimitBackend
from accounts.limits.types import Amount, Limits, LimitSet, LimitsUnavailable, Reserved, Subject
from accounts.tests.limits_fixtures import (
    DRAFT,
    a_bound,
    a_scope,
    an_operation,
    limits_on,
    redis_world,
    shared_redis_url,
)
from core.redis.client import redis_client
from core.redis.wire import DirectWire
from tests.stores import redis_cluster


@pytest.fixture
def backend() -> LimitBackend:
    world = redis_world()
    assert isinstance(world.backend, LimitBackend)
    return world.backend


def use(backend: LimitBackend, scope: LimitSet, tokens: int) -> None:
    """Make one request of the scope that settles so many tokens, and leave another open."""
    for is_settled in (True, False):
        operation = an_operation()
        at = backend.admit(scope, operation).at
        assert isinstance(backend.reserve(scope, operation, admitted_at=at, bound=a_bound(), draft=DRAFT), Reserved)
        if is_settled:
            backend.settle(scope, operation, admitted_at=at, used=Amount(tokens, 1), record=None)


def some_scopes(number: int = 5) -> list[LimitSet]:
    return [a_scope(Limits(requests_per_minute=100), monthly_tokens=10_000) for _ in range(number)]


def test_it_tells_the_same_as_one_by_one(backend: LimitBackend) -> None:
    scopes = some_scopes()
    for number, scope in enumerate(scopes[:3]):
        use(backend, scope, 10 + number)
    found = backend.usages(scopes)
    assert found == [backend.usage(scope) for scope in scopes]
    key, account = found[1]
    assert (key.settled.tokens, key.reserved.tokens, key.slots, key.requests) == (11, 100, 1, None)
    assert account.requests == 2
    assert backend.usages([]) == []


def test_it_asks_the_database_once_for_all_that_is_missing(backend: LimitBackend) -> None:
    asked: list[int] = []

    def seed(subjects: Sequence[Subject], month: int) -> dict[Subject, Amount]:
        asked.append(len(subjects))
        return {subject: Amount(7, 70) for subject in subjects}

    backend.seeder = seed
    scopes = some_scopes()
    assert all(usage.settled == Amount(7, 70) for found in backend.usages(scopes) for usage in found)
    backend.usages(scopes)
    assert asked == [2 * len(scopes)]


def test_it_makes_two_round_trips_for_any_number_of_scopes(monkeypatch: pytest.MonkeyPatch) -> None:
    trips: list[int] = []
    backend = redis_world().backend
    scopes = some_scopes(50)
    backend.usages(scopes)

    exchange = DirectWire._exchange

    def counted(self: DirectWire, *commands: Any) -> list[Any]:
        trips.append(len(commands))
        return exchange(self, *commands)

    monkeypatch.setattr(DirectWire, "_exchange", counted)
    backend.usages(scopes, month=202611)
    assert trips == [1, 49]


def test_it_is_unavailable_while_redis_is_away() -> None:
    limits = limits_on(start=lambda target: None)
    assert limits.usages(some_scopes(1))
    limits.store.is_away = True
    with pytest.raises(LimitsUnavailable):
        limits.usages(some_scopes(1))


def test_it_reads_from_every_node_of_a_cluster() -> None:
    with redis_cluster() as nodes:
        url = f"redis+cluster://127.0.0.1:{nodes[0].port}"
        backend = limits_on(url)
        scopes = some_scopes(70)
        use(backend, scopes[3], 5)
        assert [found[0].settled.tokens for found in backend.usages(scopes)] == [0, 0, 0, 5, *[0] * 66]
        backend.store.wire.close()


def test_it_loads_the_script_where_redis_has_forgotten_it() -> None:
    backend = limits_on()
    scopes = some_scopes(3)
    backend.usages(scopes)
    redis_client(shared_redis_url()).script_flush()
    assert len(backend.usages(scopes)) == 3


def test_it_asks_the_database_once_when_many_calls_miss_the_same_ledger(backend: LimitBackend) -> None:
    asked: list[Subject] = []

    def seed(subjects: Sequence[Subject], month: int) -> dict[Subject, Amount]:
        asked.extend(subjects)
        time.sleep(0.05)
        return dict.fromkeys(subjects, Amount(7, 70))

    backend.seeder = seed
    scope = a_scope(monthly_tokens=10_000)
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda _: backend.usage(scope), range(20)))
    assert {usage.settled.tokens for usages in found for usage in usages} == {7}
    assert sorted(subject.name for subject in asked) == sorted(subject.name for subject in scope.subjects)

"""The limits on a real Redis Cluster of three primaries: every script finds all its keys in one slot."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import redis
from django.conf import LazySettings

from accounts.limits import reset_limits
from accounts.limits.backend import LimitBackend
from accounts.limits.records import decode_record
from accounts.limits.scripts import load, prefix_of, records_stream
from accounts.limits.types import (
    REFUSALS_A_MINUTE,
    SHARDS,
    Amount,
    Limits,
    LimitSet,
    LimitsUnavailable,
    Refusal,
    RefusalGroup,
    Reserved,
)
from accounts.tests.limits_fixtures import DRAFT, Clock, a_bound, a_scope, an_operation, limits_on
from core.redis.client import redis_client, wire_for
from core.redis.cluster import ClusterWire
from core.redis.leases import Leases
from core.redis.wire import READ_TIMEOUT, DirectWire
from tests.processes import wait_until
from tests.stores import Redis, redis_cluster


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Redis]]:
    with redis_cluster() as servers:
        yield servers


@pytest.fixture
def url(nodes: list[Redis]) -> str:
    return f"redis+cluster://127.0.0.1:{nodes[0].port}"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def backend(url: str, clock: Clock) -> LimitBackend:
    return limits_on(url, clock=clock)


def in_every_shard() -> list[LimitSet]:
    """Give a scope in each of the shards."""
    scopes = {(scope := a_scope(requests_per_minute=2, monthly_tokens=150)).shard: scope for _ in range(SHARDS)}
    assert len(scopes) == SHARDS
    return list(scopes.values())


def test_it_runs_every_step_in_every_shard(backend: LimitBackend, clock: Clock, url: str) -> None:
    client: Any = redis_client(url)
    for scope in in_every_shard():
        operation, at = an_operation(), backend.now()
        assert [backend.admit(scope, an_operation()).admitted for _ in range(3)] == [True, True, False]
        assert not backend.peek(scope).admitted
        granted = backend.reserve(scope, operation, admitted_at=at, bound=a_bound(), draft=replace(DRAFT, status=1))
        assert isinstance(granted, Reserved)
        assert isinstance(backend.reserve(scope, an_operation(), admitted_at=at, bound=a_bound(), draft=DRAFT), Refusal)
        assert backend.renew(scope.shard, [operation]) == {operation}
        backend.settle(scope, operation, admitted_at=at, used=Amount(30, 30), record=replace(DRAFT, status=2))
        assert backend.usage(scope)[0].settled == Amount(30, 30)
        assert backend.emit(scope.account_id, an_operation(), replace(DRAFT, status=3))
        for _ in range(REFUSALS_A_MINUTE + 2):
            group = RefusalGroup(scope.subjects[0].name, "x")
            assert backend.emit(scope.account_id, an_operation(), replace(DRAFT, status=4), group=group)
        clock.step(2)
        assert backend.reap(scope.shard) == 0
        records = [decode_record(fields) for _, fields in client.xrange(records_stream(scope.shard))]
        assert [record.status for record in records] == [2, 3] + [4] * (REFUSALS_A_MINUTE + 1)
        assert records[-1].count == 2


def test_it_keeps_the_limits_of_providers_in_shards_of_their_own(backend: LimitBackend, nodes: list[Redis]) -> None:
    limits, bound = Limits(requests_per_minute=2, tokens_per_minute=200, concurrent_requests=1), a_bound()
    scopes = [LimitSet.of_provider(number, limits) for number in range(1, 20)]
    assert len(backend.store.wire.one_a_node([prefix_of(scope.shard) for scope in scopes])) == len(nodes)
    for scope in scopes:
        operation = an_operation()
        for _ in range(2):
            assert isinstance(backend.reserve(scope, operation, admitted_at=0, bound=bound, draft=DRAFT), Reserved)
        assert isinstance(backend.reserve(scope, an_operation(), admitted_at=0, bound=bound, draft=DRAFT), Refusal)
        assert backend.renew(scope.shard, [operation]) == {operation}
        backend.settle(scope, operation, admitted_at=0, used=Amount(30), record=None)
        assert isinstance(backend.reserve(scope, an_operation(), admitted_at=0, bound=bound, draft=DRAFT), Reserved)


def test_it_spreads_the_shards_over_all_nodes(nodes: list[Redis], url: str) -> None:
    client: Any = redis_client(url)
    owners = {client.get_node_from_key(prefix_of(shard)).port for shard in range(SHARDS)}
    assert owners == {node.port for node in nodes}


def test_it_keeps_all_keys_of_an_account_in_one_slot(nodes: list[Redis], backend: LimitBackend, url: str) -> None:
    scope, operation = a_scope(requests_per_minute=5, tokens_per_minute=1000), an_operation()
    backend.admit(scope, operation)
    backend.reserve(scope, operation, admitted_at=backend.now(), bound=a_bound(), draft=DRAFT)
    keys = {key for node in nodes for key in redis.Redis.from_url(node.url).keys(f"*{scope.account_id}*")}
    client: Any = redis_client(url)
    assert len(keys) >= 5
    assert len({client.keyslot(key) for key in keys}) == 1


def test_it_goes_on_alone_while_the_cluster_is_away_and_uses_it_when_it_is_back() -> None:
    scope = a_scope(requests_per_minute=2, monthly_tokens=1000)
    with redis_cluster() as servers:
        url = f"redis+cluster://127.0.0.1:{servers[0].port}"
        used: Any = redis_client(url)
        assert used.set("a", "1")
        for server in servers:
            server.kill()
        client: Any = redis_client(url)
        limits = limits_on(url, read_timeout=READ_TIMEOUT, start=lambda target: None)
        assert [limits.admit(scope, an_operation()).admitted for _ in range(3)] == [True, True, False]
        with pytest.raises(LimitsUnavailable):
            limits.reserve(scope, an_operation(), admitted_at=limits.now(), bound=a_bound(), draft=DRAFT)
        for each in (used, client):
            with pytest.raises(redis.RedisError):
                each.set("a", "2")
        assert not limits.repair_once()
        for server in servers:
            server.restart()
        wait_until(limits.repair_once, "the limits to find the cluster again")
        assert isinstance(
            limits.reserve(scope, an_operation(), admitted_at=limits.now(), bound=a_bound(), draft=DRAFT), Reserved
        )
        for each in (used, client):
            wait_until(lambda by=each: _takes(by), "the client to find it too")  # type: ignore[misc]


def _takes(client: Any) -> bool:
    try:
        return bool(client.set("a", "3"))
    except redis.RedisError:
        return False


def test_it_notices_a_node_that_takes_no_writes(nodes: list[Redis], backend: LimitBackend) -> None:
    assert backend.write_errors() == [None] * len(nodes)
    for node in nodes:
        full: Any = redis.Redis.from_url(node.url)
        full.config_set("maxmemory", 1)
        try:
            (error,) = filter(None, backend.write_errors())
            assert "maxmemory" in str(error)
        finally:
            full.config_set("maxmemory", 0)
            full.close()
    assert backend.write_errors() == [None] * len(nodes)


def test_it_follows_a_slot_that_has_moved(nodes: list[Redis], url: str) -> None:
    wire = wire_for(redis_client(url, read_timeout=5))
    assert isinstance(wire, ClusterWire)
    prefix = prefix_of(3)
    assert wire.call(load("admit"), prefix, ["", "", 0])
    ends, owners = wire._slots
    wire._slots = (ends, [*owners[1:], owners[0]])  # as if they had been there before
    assert wire.call(load("admit"), prefix, ["", "", 0])
    assert wire._slots == (ends, owners)


def test_it_looks_the_slots_up_once_for_all_who_come_together(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    command = DirectWire.command

    def listen(self: DirectWire, *arguments: Any) -> Any:
        asked.append(arguments)
        return command(self, *arguments)

    monkeypatch.setattr(DirectWire, "command", listen)
    wire = wire_for(redis_client(url, read_timeout=5))
    with ThreadPoolExecutor(32) as threads:
        list(threads.map(lambda shard: wire.call(load("admit"), prefix_of(shard), ["", "", 0]), range(SHARDS)))
    assert len([1 for arguments in asked if arguments[0] == b"CLUSTER"]) == 1


def test_it_goes_on_alone_when_a_node_is_lost() -> None:
    with redis_cluster() as servers:
        url = f"redis+cluster://127.0.0.1:{servers[0].port}"
        limits = limits_on(url, read_timeout=READ_TIMEOUT, start=lambda target: None)
        scopes = in_every_shard()
        assert all(limits.admit(scope, an_operation()).admitted for scope in scopes)
        servers[1].kill()
        assert all(limits.admit(scope, an_operation()).admitted for scope in scopes)
        assert limits.is_degraded
        with pytest.raises(LimitsUnavailable):
            limits.reserve(scopes[0], an_operation(), admitted_at=limits.now(), bound=a_bound(), draft=DRAFT)


def test_it_takes_renews_and_releases_leases_on_every_node(url: str, settings: LazySettings) -> None:
    settings.REDIS_URL = url
    reset_limits()
    mine, others = Leases(), Leases()
    names = [f"name-{number}" for number in range(10)]
    try:
        assert all(mine.take(name, "mine") for name in names)
        mine.renew(0, names)
        assert not any(others.take(name, "another's") for name in names)
        for name in names:
            mine.release(name, "mine")
        assert all(others.take(name, "another's") for name in names)
    finally:
        for leases in (mine, others):
            leases.forget()
        reset_limits()


def test_it_allows_a_node_as_many_connections_as_it_is_given() -> None:
    wire = ClusterWire("redis://127.0.0.1:1", {"max_connections": 7})
    assert wire._wire(("127.0.0.1", 1))._pool.max_connections == 7

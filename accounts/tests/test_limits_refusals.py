"""Refusals of a key beyond a rate: counted, each of them once, in few records that only grow."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import redis

from accounts.limits import refusal_counts
from accounts.limits.records import UsageRecord
from accounts.limits.scripts import prefix_of, records_stream
from accounts.limits.types import REFUSALS_A_MINUTE, Amount, LimitSet, LimitsUnavailable, RefusalGroup, Reserved
from accounts.tests.limits_fixtures import (
    DRAFT,
    World,
    a_bound,
    a_scope,
    an_operation,
    redis_world,
    shared_redis_url,
)
from accounts.tests.test_limits_outage import Outage

REFUSED = replace(DRAFT, status=429)


@pytest.fixture
def world() -> World:
    return redis_world()


@pytest.fixture
def outage() -> Outage:
    """Give a primary that fails on demand."""
    return Outage()


def a_group(scope: LimitSet, kind: str = "chat:429") -> RefusalGroup:
    return RefusalGroup(scope.subjects[0].name, kind)


def refuse(world: World, scope: LimitSet, times: int, kind: str = "chat:429", **draft: Any) -> list[str]:
    """Refuse so many requests of a key, and give their operations."""
    operations = [an_operation() for _ in range(times)]
    group = a_group(scope, kind)
    for operation in operations:
        assert world.backend.emit(scope.account_id, operation, replace(REFUSED, **draft), group=group)
    return operations


def newest(records: Iterable[UsageRecord]) -> list[UsageRecord]:
    """Keep of each id the highest revision, as the database does."""
    rows: dict[str, UsageRecord] = {}
    for record in records:
        if record.id not in rows or rows[record.id].revision < record.revision:
            rows[record.id] = record
    return list(rows.values())


def total(records: Iterable[UsageRecord]) -> int:
    return sum(record.count for record in newest(records))


def settled_down(world: World, scope: LimitSet) -> list[UsageRecord]:
    """Give all records after the counts had time to come out."""
    world.clock.step(2)
    world.backend.reap(scope.shard)
    return world.drain()


class TestBackends:
    def test_it_records_refusals_one_by_one_up_to_the_rate(self, world: World) -> None:
        scope = a_scope()
        operations = refuse(world, scope, REFUSALS_A_MINUTE)
        assert [record.id for record in world.drain()] == operations
        assert settled_down(world, scope) == []

    def test_it_counts_what_is_beyond_the_rate_in_one_record(self, world: World) -> None:
        scope = a_scope()
        refuse(world, scope, REFUSALS_A_MINUTE, label="single")
        world.drain()
        first, *_ = refuse(world, scope, 40)
        [row] = newest(settled_down(world, scope))
        assert (row.label, row.status, row.endpoint) == (DRAFT.label, 429, DRAFT.endpoint)
        assert (row.id, row.count, row.is_overrun) == (first, 40, False)
        assert row.revision >= 2

    def test_it_lets_a_count_grow_by_revisions(self, world: World) -> None:
        scope = a_scope()
        refuse(world, scope, REFUSALS_A_MINUTE + 5)
        records = settled_down(world, scope)
        refuse(world, scope, 7)
        later = settled_down(world, scope)
        assert {record.id for record in later} == {records[-1].id}
        assert total(records + later) == REFUSALS_A_MINUTE + 12

    def test_it_counts_kinds_and_keys_and_minutes_apart(self, world: World) -> None:
        scope, other = a_scope(), a_scope()
        refuse(world, scope, REFUSALS_A_MINUTE)
        world.drain()
        refuse(world, scope, 3, kind="chat:429")
        refuse(world, scope, 4, kind="chat:400")
        refuse(world, other, 5)
        records = settled_down(world, scope)
        assert sorted(record.count for record in newest(records)) == [1] * 5 + [3, 4]
        world.clock.step(60)
        refuse(world, scope, REFUSALS_A_MINUTE + 2)
        assert total(settled_down(world, scope)) == REFUSALS_A_MINUTE + 2

    def test_it_counts_an_operation_once(self, world: World) -> None:
        scope = a_scope()
        single, counted = refuse(world, scope, REFUSALS_A_MINUTE + 1)[-2:]
        for operation in (single, counted):
            assert not world.backend.emit(scope.account_id, operation, REFUSED, group=a_group(scope))
        assert total(settled_down(world, scope)) == REFUSALS_A_MINUTE + 1

    def test_it_loses_none_of_many_at_once(self, world: World) -> None:
        scope = a_scope()
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: refuse(world, scope, 25), range(12)))
        assert total(settled_down(world, scope)) == 300

    def test_it_releases_what_a_refused_operation_turns_out_to_hold(self, world: World) -> None:
        scope, operation = a_scope(), an_operation()
        refuse(world, scope, REFUSALS_A_MINUTE)
        world.drain()
        granted = world.backend.reserve(scope, operation, admitted_at=world.clock.now, bound=a_bound(), draft=DRAFT)
        assert isinstance(granted, Reserved)
        assert world.backend.emit(scope.account_id, operation, REFUSED, group=a_group(scope))
        used = world.backend.usage(scope)[0]
        assert (used.slots, used.reserved, used.settled) == (0, Amount(), Amount())
        assert [record.id for record in world.drain()] == [operation]


class TestRedis:
    def test_it_keeps_little_and_writes_little_of_a_key_that_is_refused_without_end(self) -> None:
        world, scope = redis_world(), a_scope()
        client: Any = redis.Redis.from_url(shared_redis_url())
        entries = 0
        for _ in range(60):  # a minute, of 20 refusals a second
            refuse(world, scope, 20)
            world.clock.step(1)
            world.backend.reap(scope.shard)
            entries += client.xlen(records_stream(scope.shard))
            client.unlink(records_stream(scope.shard))
        assert entries <= REFUSALS_A_MINUTE + 2 * 31
        prefix = prefix_of(scope.shard)
        left = [key for key in client.keys(f"{prefix}*{scope.subjects[0].name}*") if b":o:" not in key]
        assert len(left) <= 4
        assert all(client.ttl(key) > 0 for key in left)

    def test_it_remembers_refusals_for_a_moment_and_hits_for_a_minute(self) -> None:
        world, scope = redis_world(), a_scope()
        client: Any = redis.Redis.from_url(shared_redis_url())
        (refused,) = refuse(world, scope, 1)
        hit = an_operation()
        world.backend.emit(scope.account_id, hit, REFUSED)
        assert 0 < client.ttl(f"{prefix_of(scope.shard)}o:{refused}") <= 10
        assert 10 < client.ttl(f"{prefix_of(scope.shard)}o:{hit}") <= 60


class TestFailover:
    def refuse(self, outage: Outage, times: int) -> None:
        for _ in range(times):
            assert outage.limits.emit(1, an_operation(), REFUSED, group=RefusalGroup(outage.owner, "chat:429"))

    def test_it_counts_in_the_process_while_redis_is_away(self, outage: Outage) -> None:
        outage.begin()
        outage.limits.admit(a_scope(), an_operation())  # finds it out
        self.refuse(outage, REFUSALS_A_MINUTE + 50)
        assert total(outage.stored) == REFUSALS_A_MINUTE + 50
        assert len(newest(outage.stored)) == REFUSALS_A_MINUTE + 1
        assert outage.end()
        assert outage.stream == []

    @pytest.mark.parametrize("reply_lost", [False, True])
    def test_it_asks_redis_about_one_that_may_have_been_counted(self, outage: Outage, *, reply_lost: bool) -> None:
        self.refuse(outage, REFUSALS_A_MINUTE + 1)
        outage.begin(redis.TimeoutError("slow"), reply_lost=reply_lost)
        self.refuse(outage, 1)
        assert outage.stored == []
        assert outage.end()
        outage.clock.step(2)
        outage.beside.reap(1)
        assert total(outage.stream) == REFUSALS_A_MINUTE + 2

    def test_it_keeps_a_refusal_that_redis_turned_down(self, outage: Outage) -> None:
        outage.begin(redis.exceptions.OutOfMemoryError("OOM command not allowed"))
        outage.wire.probe_fails = False
        self.refuse(outage, 1)
        assert total(outage.stored) == 1

    def test_it_begins_another_record_before_its_revisions_run_out(
        self, outage: Outage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(refusal_counts, "LARGEST_COUNT", 10)
        outage.begin()
        outage.limits.admit(a_scope(), an_operation())
        self.refuse(outage, REFUSALS_A_MINUTE + 25)
        assert [row.count for row in newest(outage.stored) if row.count > 1] == [10, 10, 5]
        assert max(record.revision for record in outage.stored) <= 11

    def test_it_keeps_refusals_while_the_database_is_away_too(self, outage: Outage) -> None:
        outage.begin()
        with pytest.raises(LimitsUnavailable):
            outage.limits.usage(a_scope())
        outage.database_is_away = True
        self.refuse(outage, REFUSALS_A_MINUTE + 20)
        assert not outage.limits.repair_once()
        outage.database_is_away = False
        assert outage.end()
        assert total(outage.stored) == REFUSALS_A_MINUTE + 20

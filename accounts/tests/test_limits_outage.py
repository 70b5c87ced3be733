"""What the limits do while Redis is down: first with a primary that fails on demand, then with a real one."""

import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import redis

from accounts.limits.backend import LimitBackend
from accounts.limits.pending import SETTLED_TTL, Pending, PendingSettlements
from accounts.limits.records import UsageRecord, decode_record
from accounts.limits.scripts import records_stream
from accounts.limits.types import SECOND, Amount, InFlight, Limits, LimitSet, LimitsUnavailable, Refusal, Reserved
from accounts.tests.limits_fixtures import (
    DRAFT,
    NOVEMBER,
    Clock,
    Database,
    a_bound,
    a_scope,
    an_operation,
    limits_on,
    redis_world,
    shared_redis_url,
)
from core.redis.client import StateStore, redis_client, wire_for
from core.redis.wire import READ_TIMEOUT
from tests.processes import wait_until
from tests.stores import Redis, redis_server

RECORD = replace(DRAFT, usage_source="provider")


class FailingWire:
    """A wire that fails while told to: before it runs a script, or after (the reply is lost)."""

    def __init__(self) -> None:
        self._wire = wire_for(redis_client(shared_redis_url(), read_timeout=5))
        self.error: redis.RedisError | None = None
        self.reply_lost = self.probe_fails = False
        self.calls = self.probes = 0

    def call(self, *script: Any) -> Any:
        return self._run(self._wire.call, *script)

    def call_each(self, *scripts: Any) -> Any:
        return self._run(self._wire.call_each, *scripts)

    def one_a_node(self, prefixes: Sequence[str]) -> Collection[str]:
        return self._wire.one_a_node(prefixes)

    def close(self) -> None:
        self._wire.close()

    def _run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        self.calls += 1
        if self.error and self.reply_lost:
            call(*arguments)
        if self.error:
            raise self.error
        return call(*arguments)

    def ping(self) -> None:
        self.probes += 1
        if self.probe_fails:
            raise redis.ConnectionError("refused")


class Outage:
    """The limits of a process whose wire fails on demand, those of a process beside it, and all that comes out."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.owner = f"key:{an_operation()}"  # the store is shared: what other tests refuse must not count here
        self.drain, self.streamed = redis_world(self.clock).drain, list[UsageRecord]()
        self.stored: list[UsageRecord] = []
        self.database = Database()
        self.database_is_away = False
        self.wire = FailingWire()
        parts: dict[str, Any] = {
            "seeder": self.database, "sink": self.store, "clock": self.clock, "start": lambda target: None
        }  # fmt: skip
        self.limits = LimitBackend(StateStore(self.wire, start=parts["start"]), **parts)
        self.beside = limits_on(**parts)

    @property
    def stream(self) -> list[UsageRecord]:
        """Return the records that came out of Redis, now and before."""
        self.streamed += self.drain()
        return self.streamed

    def store(self, record: UsageRecord) -> None:
        if self.database_is_away:
            raise OSError("the database is down")
        self.stored.append(record)

    def begin(self, error: redis.RedisError | None = None, *, reply_lost: bool = False) -> None:
        self.wire.error, self.wire.reply_lost = error or redis.ConnectionError("refused"), reply_lost
        self.wire.probe_fails = True

    def end(self) -> bool:
        self.wire.error, self.wire.probe_fails = None, False
        return self.limits.repair_once()

    def reserve(self, scope: LimitSet, operation: str = "") -> Reserved | Refusal | InFlight:
        return self.limits.reserve(
            scope, operation or an_operation(), admitted_at=self.clock.now, bound=a_bound(), draft=RECORD
        )

    def settle(self, scope: LimitSet, operation: str, tokens: int) -> Any:
        used = Amount(tokens, tokens)
        return self.limits.settle(scope, operation, admitted_at=self.clock.now, used=used, record=RECORD)

    def settled(self, scope: LimitSet) -> Amount:
        settled: Amount = self.beside.usage(scope, NOVEMBER)[0].settled
        return settled


@pytest.fixture
def outage() -> Outage:
    return Outage()


class TestBreaker:
    def test_it_opens_only_when_a_separate_probe_fails_too(self, outage: Outage) -> None:
        outage.begin(redis.TimeoutError("slow"))
        outage.wire.probe_fails = False
        with pytest.raises(LimitsUnavailable) as refused:
            outage.limits.admit(a_scope(), an_operation())
        assert refused.value.retry_after == 1
        assert not outage.limits.is_degraded
        assert (outage.wire.calls, outage.wire.probes) == (3, 3)

    def test_it_asks_redis_no_more_once_it_is_open(self, outage: Outage) -> None:
        outage.begin()
        for _ in range(5):
            assert outage.limits.admit(a_scope(), an_operation()).admitted
        assert (outage.wire.calls, outage.wire.probes) == (1, 1)
        assert outage.limits.is_degraded

    def test_it_closes_when_the_probe_succeeds_again(self, outage: Outage) -> None:
        outage.begin()
        outage.limits.admit(a_scope(), an_operation())
        assert not outage.limits.repair_once()
        assert outage.limits.is_degraded
        assert outage.end()
        assert not outage.limits.is_degraded

    def test_it_turns_answers_that_are_errors_into_unavailable(self, outage: Outage) -> None:
        outage.begin(redis.exceptions.OutOfMemoryError("OOM command not allowed"))
        with pytest.raises(LimitsUnavailable):
            outage.limits.admit(a_scope(), an_operation())
        assert outage.wire.probes == 0

    def test_it_starts_one_mender_for_all_that_fails(self, outage: Outage) -> None:
        started: list[Callable[[], None]] = []
        outage.limits.store._prober._start = started.append
        outage.begin()
        for _ in range(3):
            outage.limits.admit(a_scope(), an_operation())
        assert len(started) == 1


class TestAway:
    def test_it_holds_request_rates_and_slots_in_this_process(self, outage: Outage) -> None:
        outage.begin()
        scope = a_scope(requests_per_minute=2, concurrent_requests=1)
        admitted = [outage.limits.admit(scope, an_operation()).admitted for _ in range(3)]
        assert admitted == [True, True, False]
        assert not outage.limits.peek(scope).admitted
        assert isinstance(outage.reserve(scope), Reserved)
        assert isinstance(outage.reserve(scope), Refusal)

    def test_it_refuses_calls_under_a_budget(self, outage: Outage) -> None:
        outage.begin()
        for limits in (Limits(monthly_tokens=10**9), Limits(monthly_cost=10**12)):
            with pytest.raises(LimitsUnavailable):
                outage.reserve(a_scope(limits))

    def test_it_charges_what_it_served_alone_when_redis_is_back(self, outage: Outage) -> None:
        scope, operation = a_scope(), an_operation()
        outage.begin()
        outage.reserve(scope, operation)
        outage.settle(scope, operation, 30)
        assert [(record.id, record.revision) for record in outage.stored] == [(operation, 2)]
        assert outage.end()
        assert outage.stream == []
        assert outage.settle(scope, operation, 30).duplicate

    def test_it_charges_ledgers_that_were_there_before_the_outage(self, outage: Outage) -> None:
        scope, operation = a_scope(), an_operation()
        outage.beside.usage(scope)
        outage.clock.step(1)
        outage.begin()
        outage.reserve(scope, operation)
        outage.settle(scope, operation, 30)
        outage.end()
        assert outage.settled(scope) == Amount(30, 30)

    def test_it_settles_later_what_redis_had_reserved(self, outage: Outage) -> None:
        scope, operation = a_scope(monthly_tokens=1000), an_operation()
        outage.reserve(scope, operation)
        outage.begin()
        assert not outage.settle(scope, operation, 30).duplicate
        assert [record.id for record in outage.stored] == [operation]
        assert outage.end()
        used = outage.beside.usage(scope)[0]
        assert (used.settled, used.reserved, used.slots) == (Amount(30, 30), Amount(), 0)
        assert outage.stream == []

    def test_it_flags_an_overrun_that_redis_does_not_see(self, outage: Outage) -> None:
        scope, operation = a_scope(), an_operation()
        outage.reserve(scope, operation)
        outage.begin()
        assert outage.settle(scope, operation, 101).overrun
        assert outage.stored[0].is_overrun

    def test_it_replaces_the_charge_of_a_lease_that_ran_out_meanwhile(self, outage: Outage) -> None:
        scope, operation = a_scope(), an_operation()
        outage.reserve(scope, operation)
        outage.begin()
        outage.clock.step(30)
        outage.beside.reap(scope.shard)
        outage.settle(scope, operation, 30)
        outage.end()
        assert outage.settled(scope) == Amount(30, 30)
        assert [(record.id, record.revision) for record in outage.stream + outage.stored] == [
            (operation, 1),
            (operation, 2),
        ]

    def test_it_settles_once_when_only_the_reply_was_lost(self, outage: Outage) -> None:
        scope, operation = a_scope(), an_operation()
        outage.reserve(scope, operation)
        outage.begin(redis.TimeoutError("lost"), reply_lost=True)
        outage.settle(scope, operation, 30)
        outage.end()
        assert outage.settled(scope) == Amount(30, 30)

    def test_it_gives_back_what_a_lost_reply_had_reserved(self, outage: Outage) -> None:
        scope = a_scope(monthly_tokens=1000)
        outage.begin(redis.TimeoutError("lost"), reply_lost=True)
        with pytest.raises(LimitsUnavailable):
            outage.reserve(scope)
        outage.end()
        used = outage.beside.usage(scope)[0]
        assert (used.reserved, used.slots, used.settled) == (Amount(), 0, Amount())

    def test_it_keeps_records_while_the_database_is_away_too(self, outage: Outage) -> None:
        scope, operation = a_scope(), an_operation()
        outage.reserve(scope, operation)
        outage.begin()
        outage.database_is_away = True
        outage.settle(scope, operation, 30)
        outage.limits.emit(scope.account_id, an_operation(), RECORD)
        outage.end()
        assert outage.stream[0].id == operation
        assert len(outage.stream) == 2

    def test_it_emits_to_the_database(self, outage: Outage) -> None:
        outage.begin()
        outage.limits.settle(a_scope(), "x", admitted_at=outage.clock.now, used=Amount(), record=RECORD)
        assert outage.limits.emit(1, "op", RECORD)
        assert outage.stored[-1] == replace(RECORD, id="op")

    def test_it_takes_leases_it_cannot_renew_to_be_held(self, outage: Outage) -> None:
        outage.begin()
        assert outage.limits.renew(1, ["a"]) == {"a"}

    def test_it_does_not_guess_usage(self, outage: Outage) -> None:
        outage.begin()
        with pytest.raises(LimitsUnavailable):
            outage.limits.usage(a_scope())


class TestPending:
    def pending(self, operation: str, **more: Any) -> Pending:
        return Pending(a_scope(), operation, 0, Amount(1, 1), 0, None, **more)

    def test_it_drops_the_oldest_when_it_is_full(self) -> None:
        queue = PendingSettlements(Clock(), capacity=2)
        for operation in "abc":
            queue.add(self.pending(operation))
        assert (len(queue), queue.dropped) == (2, 1)

    def test_it_does_not_repeat_what_redis_may_have_forgotten(self) -> None:
        queue, made = PendingSettlements(Clock(SETTLED_TTL)), list[Pending]()
        queue.add(self.pending("a", maybe_done=True))
        queue.add(self.pending("b"))
        assert queue.flush(made.append)
        assert ([each.operation for each in made], queue.dropped) == (["b"], 1)

    def test_it_makes_the_others_when_one_fails_and_keeps_that(self) -> None:
        queue, made = PendingSettlements(Clock()), []
        for operation in "abc":
            queue.add(self.pending(operation))

        def make(pending: Pending) -> None:
            if pending.operation == "a":
                raise TimeoutError
            made.append(pending.operation)

        assert not queue.flush(make)
        assert (made, len(queue)) == (["b", "c"], 1)


@pytest.fixture
def server() -> Iterator[Redis]:
    with redis_server(appendonly=True) as server:
        yield server


class TestRealRedis:
    """A real Redis is killed, stopped in its tracks, and restarted empty. The mender's thread runs as in production."""

    @pytest.fixture
    def stored(self) -> list[UsageRecord]:
        return []

    @pytest.fixture
    def database(self) -> Database:
        return Database()

    @pytest.fixture
    def limits(self, server: Redis, stored: list[UsageRecord], database: Database) -> LimitBackend:
        return limits_on(server.url, read_timeout=READ_TIMEOUT, seeder=database, sink=stored.append)

    def reserve(self, limits: LimitBackend, scope: LimitSet, operation: str) -> Reserved | Refusal | InFlight:
        return limits.reserve(scope, operation, admitted_at=limits.now(), bound=a_bound(), draft=RECORD)

    def test_it_survives_a_crash_and_a_restart(
        self, server: Redis, limits: LimitBackend, stored: list[UsageRecord]
    ) -> None:
        scope, budget = a_scope(requests_per_minute=3), a_scope(monthly_tokens=1000)
        operation = an_operation()
        self.reserve(limits, budget, operation)
        time.sleep(1.1)  # the append-only file is synced once a second
        server.kill()
        assert limits.admit(scope, an_operation()).admitted
        with pytest.raises(LimitsUnavailable):
            self.reserve(limits, budget, an_operation())
        limits.settle(budget, operation, admitted_at=limits.now(), used=Amount(30, 30), record=RECORD)
        assert [record.id for record in stored] == [operation]
        server.restart()
        wait_until(lambda: not limits.is_degraded and not limits.pending, "the mender", timeout=5)
        used = limits.usage(budget)[0]
        assert (used.settled, used.reserved) == (Amount(30, 30), Amount())

    def test_it_waits_for_a_paused_redis_once(self, server: Redis, limits: LimitBackend) -> None:
        scope = a_scope(requests_per_minute=100)
        limits.admit(scope, an_operation())
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            waits = []
            for _ in range(20):
                began = time.monotonic()
                assert limits.admit(scope, an_operation()).admitted
                waits.append(time.monotonic() - began)
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        assert waits[0] < 0.35
        assert max(waits[1:]) < 0.05
        wait_until(lambda: not limits.is_degraded, "the breaker to close", timeout=5)
        assert limits.admit(scope, an_operation()).admitted

    def test_it_reads_a_spent_budget_back_when_redis_comes_back_empty(
        self, server: Redis, limits: LimitBackend, database: Database
    ) -> None:
        scope, operation = a_scope(monthly_tokens=150), an_operation()
        self.reserve(limits, scope, operation)
        limits.settle(scope, operation, admitted_at=limits.now(), used=Amount(100, 100), record=RECORD)
        month = database.asked[0][1]
        database.ledgers[scope.subjects[0].name, month] = Amount(100, 100)
        redis.Redis.from_url(server.url).flushall()
        refusal = self.reserve(limits, scope, an_operation())
        assert isinstance(refusal, Refusal)
        assert (refusal.used, refusal.impossible) == (100, False)

    def test_it_replaces_connections_that_a_restart_made_stale(self, server: Redis, limits: LimitBackend) -> None:
        limits.admit(a_scope(), an_operation())
        server.kill()
        server.restart()
        assert limits.admit(a_scope(), an_operation()).admitted
        assert not limits.is_degraded

    def test_it_loads_scripts_again_that_redis_has_forgotten(self, server: Redis, limits: LimitBackend) -> None:
        limits.admit(a_scope(), an_operation())
        redis.Redis.from_url(server.url).script_flush()
        assert limits.admit(a_scope(), an_operation()).admitted

    def test_it_gives_every_key_a_time_to_live(self, server: Redis, limits: LimitBackend) -> None:
        scope = a_scope(requests_per_minute=3, tokens_per_minute=1000, monthly_tokens=1000)
        for tokens in (1, None):
            operation = an_operation()
            limits.admit(scope, operation)
            self.reserve(limits, scope, operation)
            if tokens:
                limits.settle(scope, operation, admitted_at=limits.now(), used=Amount(1, 1), record=RECORD)
        client: Any = redis.Redis.from_url(server.url)
        keys = client.keys("*")
        assert len(keys) > 8
        assert all(key.startswith(b"aiapi:{s%d}:" % scope.shard) for key in keys)
        assert [key for key in keys if client.ttl(key) < 1] == []

    def test_it_puts_records_into_the_stream_of_the_shard(self, server: Redis, limits: LimitBackend) -> None:
        scope, operation = a_scope(), an_operation()
        limits.emit(scope.account_id, operation, RECORD)
        client: Any = redis.Redis.from_url(server.url)
        [(_, fields)] = client.xrange(records_stream(scope.shard))
        assert decode_record(fields) == replace(RECORD, id=operation)


def test_it_uses_redis_time() -> None:
    with redis_server() as server:
        backend = limits_on(server.url)
        assert abs(backend.now() - time.time_ns() // 1000) < SECOND

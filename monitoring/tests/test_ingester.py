"""The ingester: each record of the streams in the database once, whatever dies when."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from django.db import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError

from accounts.limits.backend import LimitBackend
from accounts.limits.scripts import prefix_of, records_stream
from accounts.limits.types import REFUSALS_A_MINUTE, Amount, RefusalGroup
from accounts.tests.factories import Cast, IssuedKey
from monitoring import ingester as module
from monitoring.ingester import CLAIM_IDLE, GROUP, Ingester
from monitoring.models import RequestRecord
from monitoring.recorder import write_records
from monitoring.selectors import stats
from monitoring.tests.samples import a_draft, an_operation, open_call, scope_of

pytestmark = pytest.mark.django_db


class CrashingClient:
    """A client whose process dies before it acknowledges: all but transactions goes through."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def pipeline(self, *, transaction: bool) -> Any:
        """Fail where a batch is taken off its stream."""
        if transaction:
            raise RedisConnectionError("killed")
        return self._client.pipeline(transaction=False)


def emitted(limits: LimitBackend, issued: IssuedKey, **changes: Any) -> str:
    """Emit a record of a key into its stream, and return the operation."""
    operation = an_operation()
    limits.emit(issued.key.account_id, operation, a_draft(issued, **changes))
    return operation


def stream_of(issued: IssuedKey) -> str:
    """Return the stream that a key's records go to."""
    return records_stream(scope_of(issued).shard)


def in_database() -> set[str]:
    """List the operations that have a row."""
    return {pk.hex for pk in RequestRecord.objects.values_list("pk", flat=True)}


def read_by_the_dead(store: Any, stream: str, *, idle: int) -> None:
    """Read all that a stream has, as an ingester that then dies, `idle` ms ago."""
    if not any(found["name"] == GROUP.encode() for found in store.xinfo_groups(stream)):
        store.xgroup_create(stream, GROUP, id="0")
    store.xreadgroup(GROUP, "dead", {stream: ">"})
    pending = [entry["message_id"] for entry in store.xpending_range(stream, GROUP, "-", "+", 100)]
    store.xclaim(stream, GROUP, "dead", 0, pending, idle=idle)


def test_it_moves_every_record_once_whenever_it_comes(cast: Cast, redis_limits: LimitBackend, store: Any) -> None:
    ingester = Ingester()
    assert ingester.run_once() == 0  # there is no stream yet
    expected = {emitted(redis_limits, issued) for issued in (cast.owner, cast.colleague, cast.stranger) for _ in "abc"}
    assert ingester.run_once() == 9
    assert ingester.run_once() == 0
    expected.add(emitted(redis_limits, cast.owner, cost=123, label="ümläut", cache="hit"))
    assert ingester.run_once() == 1
    assert in_database() == expected
    row = RequestRecord.objects.get(label="ümläut")
    assert (row.cache, row.key_name, row.status) == ("hit", "owner", 200)
    assert store.xlen(stream_of(cast.owner)) == 0
    assert store.xpending(stream_of(cast.owner), GROUP)["pending"] == 0


def test_it_leaves_no_consumer_behind(cast: Cast, redis_limits: LimitBackend, store: Any) -> None:
    emitted(redis_limits, cast.owner)
    emitted(redis_limits, cast.stranger)
    read_by_the_dead(store, stream_of(cast.stranger), idle=0)
    ingester = Ingester()
    ingester.run_once()
    ingester.leave()
    consumers = [store.xinfo_consumers(stream_of(issued), GROUP) for issued in (cast.owner, cast.stranger)]
    assert [[each["name"] for each in found] for found in consumers] == [[], [b"dead"]]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Note the operations of each batch that is written."""
    batches: list[list[str]] = []

    def noted(records: Any) -> int:
        batches.append([record.id for record in records])
        return write_records(records)

    monkeypatch.setattr(module, "write_records", noted)
    return batches


def test_it_writes_the_records_of_many_accounts_at_once(
    cast: Cast, redis_limits: LimitBackend, store: Any, written: list[list[str]]
) -> None:
    expected = {emitted(redis_limits, issued) for issued in (cast.owner, cast.stranger)}
    assert stream_of(cast.owner) != stream_of(cast.stranger)
    assert Ingester().run_once() == 2
    (batch,) = written
    assert set(batch) == in_database() == expected
    assert store.xlen(stream_of(cast.owner)) == store.xlen(stream_of(cast.stranger)) == 0


def test_it_lets_no_account_wait_for_all_of_anothers_records(
    cast: Cast, redis_limits: LimitBackend, monkeypatch: pytest.MonkeyPatch, written: list[list[str]]
) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    first, second = sorted((cast.owner, cast.stranger), key=lambda issued: scope_of(issued).shard)
    for _ in range(5):
        emitted(redis_limits, first)
    quiet = emitted(redis_limits, second)
    Ingester().run_once()
    assert sum(map(len, written)) == 6
    assert quiet in written[1]


def test_it_writes_in_its_next_round_what_it_had_read_when_redis_went_away(
    cast: Cast, redis_limits: LimitBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {emitted(redis_limits, issued) for issued in (cast.owner, cast.stranger)}
    ingester = Ingester()
    read = ingester.client.xreadgroup
    reads: list[str] = []

    def fail_second(*arguments: Any, **options: Any) -> Any:
        reads.append("read")
        if len(reads) > 1:
            raise RedisConnectionError("away")
        return read(*arguments, **options)

    monkeypatch.setattr(ingester.client, "xreadgroup", fail_second)
    with pytest.raises(RedisConnectionError):
        ingester.run_once()
    monkeypatch.undo()
    assert in_database() == set()
    assert ingester.run_once() == 2
    assert in_database() == expected


def test_it_takes_over_what_a_dead_ingester_had_read(cast: Cast, redis_limits: LimitBackend, store: Any) -> None:
    operation = emitted(redis_limits, cast.owner)
    read_by_the_dead(store, stream_of(cast.owner), idle=0)
    successor = Ingester(name="successor")
    assert successor.run_once() == 0, "it may still be at work"
    read_by_the_dead(store, stream_of(cast.owner), idle=CLAIM_IDLE + 1)
    assert successor.run_once() == 1
    assert in_database() == {operation}
    assert store.xlen(stream_of(cast.owner)) == 0


def test_it_writes_in_its_next_round_what_the_database_did_not_take(
    cast: Cast, redis_limits: LimitBackend, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    expected = {emitted(redis_limits, cast.owner) for _ in range(3)}
    ingester, write = Ingester(), write_records

    def fail(records: Any) -> int:
        raise OperationalError("the database is down")

    monkeypatch.setattr(module, "write_records", fail)
    for _ in range(3):
        with pytest.raises(OperationalError):
            ingester.run_once()
    monkeypatch.setattr(module, "write_records", write)
    expected.add(emitted(redis_limits, cast.owner))
    assert ingester.run_once() == 4
    assert in_database() == expected
    assert store.xlen(stream_of(cast.owner)) == 0
    assert ingester.run_once() == 0


def test_it_writes_nothing_twice_when_it_was_killed_before_it_acknowledged(
    cast: Cast, redis_limits: LimitBackend, store: Any
) -> None:
    operation = emitted(redis_limits, cast.owner)
    with pytest.raises(RedisConnectionError):
        Ingester(CrashingClient(store), name="dead").run_once()
    assert in_database() == {operation}
    read_by_the_dead(store, stream_of(cast.owner), idle=CLAIM_IDLE + 1)
    Ingester(name="successor").run_once()
    assert RequestRecord.objects.count() == 1
    assert store.xlen(stream_of(cast.owner)) == 0


def test_it_lets_the_slower_of_two_change_nothing(cast: Cast, redis_limits: LimitBackend, store: Any) -> None:
    operation = open_call(redis_limits, cast.owner)
    record = a_draft(cast.owner)
    redis_limits.settle(
        scope_of(cast.owner), operation, admitted_at=record.admitted_at, used=Amount(30, 5), record=record
    )
    stream = stream_of(cast.owner)
    entries = store.xrange(stream)
    assert Ingester(name="fast").run_once() == 1
    Ingester(name="slow")._write({stream: entries})  # what it had read before the fast one took it over
    assert RequestRecord.objects.count() == 1


def test_it_goes_on_after_the_store_was_emptied(cast: Cast, redis_limits: LimitBackend, store: Any) -> None:
    ingester = Ingester()
    emitted(redis_limits, cast.owner)
    ingester.run_once()
    store.flushdb()
    assert ingester.run_once() == 0
    emitted(redis_limits, cast.owner)
    assert sum(ingester.run_once() for _ in range(2)) == 1  # the first finds its group gone
    assert RequestRecord.objects.count() == 2


def test_it_charges_the_bound_of_a_call_whose_process_died_until_it_settles_late(
    cast: Cast, redis_limits: LimitBackend, store: Any
) -> None:
    operation, scope = open_call(redis_limits, cast.owner, tokens=100), scope_of(cast.owner)
    store.zadd(prefix_of(scope.shard) + "l", {operation: 1})  # its lease ended long ago
    ingester = Ingester()
    assert ingester.run_once() == 1
    row = RequestRecord.objects.get(pk=UUID(operation))
    assert (row.usage_source, row.error_code, row.status) == ("bound", "interrupted", 500)
    assert row.input_tokens + row.output_tokens == 100
    (key, _) = redis_limits.usage(scope)
    assert (key.slots, key.settled.tokens, key.reserved.tokens) == (0, 100, 0)
    record = a_draft(cast.owner, input_tokens=20, output_tokens=10, cost=5)
    redis_limits.settle(scope, operation, admitted_at=record.admitted_at, used=Amount(30, 5), record=record)
    assert ingester.run_once() == 1
    row = RequestRecord.objects.get()
    assert (row.usage_source, row.status, row.input_tokens + row.output_tokens) == ("provider", 200, 30)
    assert redis_limits.usage(scope)[0].settled == Amount(30, 5)


@pytest.mark.parametrize(
    "fields",
    [
        {"nonsense": "x"},
        {"o": "not-an-id", "x": "0", "r": "{}"},
        {"o": "01a20e31767a7bd8a6f134a31d762537", "x": "0", "r": "{"},
        {"o": "01a20e31767a7bd8a6f134a31d762537", "x": "0", "r": "[]"},
        {"o": "01a20e31767a7bd8a6f134a31d762537", "x": "0", "r": '{"label": "without the rest"}'},
        {"o": b"\xff", "x": "0", "r": "{}"},
        {},
    ],
    ids=["fields", "id", "json", "list", "incomplete", "bytes", "refused"],
)
def test_it_puts_aside_what_is_no_record_and_moves_the_rest(
    cast: Cast, redis_limits: LimitBackend, store: Any, fields: dict[str, Any]
) -> None:
    before = emitted(redis_limits, cast.owner)
    if fields:
        store.xadd(stream_of(cast.owner), fields)
    else:
        emitted(redis_limits, cast.owner, status=None)  # the database refuses it
    others = {emitted(redis_limits, issued) for issued in (cast.owner, cast.stranger)}
    Ingester().run_once()
    assert in_database() == {before, *others}
    assert store.xlen(stream_of(cast.owner)) == store.xlen(stream_of(cast.stranger)) == 0
    (kept,) = store.xrange(stream_of(cast.owner) + ":rejected")
    assert set(kept[1]) == ({name.encode() for name in fields} or {b"o", b"r", b"x"})
    assert not store.exists(stream_of(cast.stranger) + ":rejected")


def test_it_writes_how_many_refusals_there_were(cast: Cast, redis_limits: LimitBackend, store: Any) -> None:
    account, shard = cast.owner.key.account_id, scope_of(cast.owner).shard
    ingester, refused = Ingester(), a_draft(cast.owner, status=429, error_code="rate_limited")
    for counted in (4, 3):
        for _ in range(counted + (REFUSALS_A_MINUTE if counted == 4 else 0)):
            redis_limits.emit(account, an_operation(), refused, group=RefusalGroup(f"key:{cast.owner.key.pk}", "chat"))
        for name, _ in store.zscan_iter(f"{prefix_of(shard)}f"):
            store.zadd(f"{prefix_of(shard)}f", {name: 1})  # two seconds later
        redis_limits.reap(shard)
        ingester.run_once()
    assert RequestRecord.objects.count() == REFUSALS_A_MINUTE + 1
    assert stats(account_id=account)["total_requests"] == REFUSALS_A_MINUTE + 7

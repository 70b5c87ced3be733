"""The ledger through a crash: two processes spend one budget, one is killed, and every token is accounted for."""

import multiprocessing
import random
import threading
import time
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from typing import Any

import pytest
import redis

from accounts.limits.backend import LimitBackend
from accounts.limits.records import UsageRecord, decode_record
from accounts.limits.scripts import records_stream
from accounts.limits.types import Amount, Bound, Limits, LimitSet, OperationClosed, Reserved, Subject
from accounts.tests.limits_fixtures import DRAFT, a_scope, an_operation, limits_on, shared_redis_url
from tests.processes import wait_until

BUDGET = 10_000
THREADS = 10
LEASE_SECONDS = 1
CALL_SECONDS = 0.2
MISSES = 20  # refusals in a row after which a thread takes the budget to be spent


def spend(url: str, scope: LimitSet, together: Barrier) -> None:
    """Make calls of random size from all threads until the budget is spent, as one server does."""
    backend = limits_on(url, read_timeout=10, lease_seconds=LEASE_SECONDS)

    def run() -> None:
        misses = 0
        while misses < MISSES:
            misses = 0 if call_once(backend, scope) else misses + 1

    together.wait()
    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def call_once(backend: LimitBackend, scope: LimitSet) -> bool:
    """Make one call that uses part of its bound; answer whether it was let in."""
    operation, at = an_operation(), backend.now()
    bound = Bound(Amount(random.randint(1, 50), 5), random.randint(0, 100), 1_000_000, minimum_output=0)
    try:
        granted = backend.reserve(scope, operation, admitted_at=at, bound=bound, draft=DRAFT)
    except OperationClosed:
        return False
    if not isinstance(granted, Reserved):
        time.sleep(CALL_SECONDS / 10)
        return False
    time.sleep(random.random() * CALL_SECONDS)
    output = random.randint(0, granted.output_tokens)
    used = bound.at(output)
    record = replace(DRAFT, input_tokens=bound.prompt.tokens, output_tokens=output, cost=used.cost)
    backend.settle(scope, operation, admitted_at=at, used=used, record=record)
    return True


def final_records(shard: int) -> dict[str, UsageRecord]:
    """Read the stream as the ingester does: of each id, the highest revision."""
    client: Any = redis.Redis.from_url(shared_redis_url())
    records: dict[str, UsageRecord] = {}
    for _, fields in client.xrange(records_stream(shard)):
        record = decode_record(fields)
        if record.id not in records or record.revision > records[record.id].revision:
            records[record.id] = record
    return records


@pytest.fixture
def scope() -> LimitSet:
    scope = a_scope()
    key = Subject("key", scope.subjects[0].id, Limits(monthly_tokens=BUDGET))
    client: Any = redis.Redis.from_url(shared_redis_url())
    client.unlink(records_stream(scope.shard))
    return LimitSet(scope.account_id, (key, scope.subjects[1]))


def test_it_accounts_for_every_token_when_a_process_is_killed(scope: LimitSet) -> None:
    backend, context = limits_on(read_timeout=10, lease_seconds=LEASE_SECONDS), multiprocessing.get_context("spawn")
    together = context.Barrier(3)
    arguments = (shared_redis_url(), scope, together)
    servers = [context.Process(target=spend, args=arguments, daemon=True) for _ in range(2)]
    for server in servers:
        server.start()
    together.wait(30)
    totals = [0]
    while totals[-1] < BUDGET / 3:
        totals.append(sample(backend, scope))
    servers[0].kill()
    while servers[1].is_alive():
        totals.append(sample(backend, scope))
    wait_until(lambda: backend.reap(scope.shard) == 0 and backend.usage(scope)[0].slots == 0, "the leases to run out")
    key, account = backend.usage(scope)
    records = final_records(scope.shard).values()
    recorded = Amount(
        sum(record.input_tokens + record.output_tokens for record in records),
        sum(record.cost or 0 for record in records),
    )
    assert max(totals) <= BUDGET
    assert key.settled == account.settled == recorded
    assert key.reserved == account.reserved == Amount()
    assert any(record.revision == 1 for record in records), "nobody died in the middle of a call"
    assert BUDGET - 50 <= recorded.tokens <= BUDGET, "refused although there was room"


def sample(backend: LimitBackend, scope: LimitSet) -> int:
    """Give what counts against the budget at this moment."""
    time.sleep(0.002)
    used = backend.usage(scope)[0]
    return (used.settled + used.reserved).tokens

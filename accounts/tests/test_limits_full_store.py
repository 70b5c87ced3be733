"""A Redis that is full: new calls are refused, and no record of those that are open is lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from accounts.limits.types import Amount, Bound, Limits, LimitSet, LimitsUnavailable, Reserved, Subject
from accounts.tests.limits_fixtures import DRAFT, limits_on
from core.redis.client import redis_client
from tests.stores import redis_server

PLENTY = 10**9
SCOPE = LimitSet(1, (Subject("key", "1", Limits(PLENTY, PLENTY, PLENTY, PLENTY, PLENTY)),))
BOUND = Bound(prompt=Amount(40, 40))
RECORD = replace(DRAFT, status=200)


@pytest.fixture
def store() -> Iterator[Any]:
    """Run a Redis of this test's own, and return a client of it."""
    with redis_server() as server:
        client: Any = redis_client(server.url, read_timeout=5)
        client.config_set("maxmemory-policy", "noeviction")
        yield client
        client.close()


def test_it_refuses_new_calls_and_hands_the_records_of_open_ones_to_the_database(store: Any) -> None:
    options = store.connection_pool.connection_kwargs
    url, written = f"redis://{options['host']}:{options['port']}", list[Any]()
    limits = limits_on(url, read_timeout=1, lease_seconds=30, sink=written.append)
    now = limits.now()
    assert isinstance(limits.reserve(SCOPE, "a" * 32, admitted_at=now, bound=BOUND, draft=RECORD), Reserved)
    store.config_set("maxmemory", 1)
    settled = limits.settle(SCOPE, "a" * 32, admitted_at=now, used=Amount(30, 5), record=RECORD)
    assert settled.charged == Amount(30, 5)
    assert [(record.id, record.status) for record in written] == [("a" * 32, 200)]
    with pytest.raises(LimitsUnavailable):
        limits.reserve(SCOPE, "b" * 32, admitted_at=now, bound=BOUND, draft=RECORD)
    store.config_set("maxmemory", 0)
    assert isinstance(limits.reserve(SCOPE, "c" * 32, admitted_at=now, bound=BOUND, draft=RECORD), Reserved)
    limits.repair_once()
    (usage,) = limits.usage(SCOPE)
    assert (usage.settled, usage.reserved, usage.slots) == (Amount(30, 5), Amount(40, 40), 1)

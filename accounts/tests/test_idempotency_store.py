"""Idempotent answers in the Redis that the limits need: they leave it room, and nobody waits for one that is away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis as redis_client
from django.conf import LazySettings
from redis.exceptions import RedisError

from accounts.idempotency.store import Held, KeptAnswer, Lease, RedisStore
from accounts.limits import get_limits, reset_limits
from accounts.limits.failover import FailoverBackend
from tests.silent import Silent, silent_server
from tests.stores import redis_server

pytestmark = pytest.mark.django_db
MIB = 2**20
MEMORY = 12 * MIB


@pytest.fixture
def small(settings: LazySettings) -> Iterator[Any]:
    """Run a Redis of MEMORY bytes that the limits use, and return a client of it."""
    with redis_server(options=("--maxmemory", str(MEMORY))) as server:
        settings.REDIS_URL = server.url
        client = redis_client.Redis.from_url(server.url)
        yield client
        client.close()
    reset_limits()


@pytest.fixture
def silent(settings: LazySettings) -> Iterator[Silent]:
    """Let the limits use a Redis that never answers."""
    with silent_server() as server:
        settings.REDIS_URL = server.redis_url
        yield server
    reset_limits()


def lease(name: str, account: int = 7) -> Lease:
    """Make a lease."""
    return Lease(name, "asked", f"token of {name}", account)


def keep(store: RedisStore, name: str, account: int = 7) -> bool:
    """Keep an answer of about a megabyte; answer whether it is there, which the place is given back for if not."""
    asked = lease(name, account)
    assert store.take(asked) is None
    store.finish(asked, KeptAnswer(200, {}, b"x" * (MIB * 3 // 4)))
    held = store.take(asked)
    if held is None:
        store.release(asked)
    return held is not None


def test_it_leaves_a_quarter_of_the_memory_to_the_limits(small: Any) -> None:
    store = RedisStore()
    kept = [keep(store, f"answer{account}", account) for account in range(20)]
    assert kept[0]
    assert not kept[-1], "whose place is free: a retry runs anew"
    assert small.info("memory")["used_memory"] < 0.8 * MEMORY
    assert small.set("state", b"s" * 1000)


def test_it_drops_the_oldest_of_the_same_account_for_room_in_redis(small: Any) -> None:
    store = RedisStore()
    assert all(keep(store, f"answer{number}") for number in range(12))
    assert small.info("memory")["used_memory"] < 0.8 * MEMORY
    assert isinstance(store.take(lease("answer11")), Held)
    assert store.take(lease("answer0")) is None
    total = int(small.hget("aiapi:idempotency:{7}:sizes", "total"))
    assert total == sum(small.strlen(key) + 300 for key in small.scan_iter("aiapi:idempotency:{7}:answer[1-9]*"))


def test_it_waits_for_no_redis_that_the_limits_know_to_be_away(silent: Silent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accounts.limits.failover.MEND_INTERVAL", 60.0)
    store, limits = RedisStore(), get_limits()
    assert isinstance(limits, FailoverBackend)
    with pytest.raises(RedisError):
        store.take(lease("a"))
    assert limits.is_degraded, "what it noticed, the limits know"
    assert silent.calls() == 2, "the call, and the probe after it"
    for ask in (store.take, store.renew, store.release, lambda mine: store.finish(mine, KeptAnswer(200))):
        with pytest.raises(RedisError):
            ask(lease("b"))
    assert silent.calls() == 0


def test_it_takes_what_it_has_taken_by_a_call_whose_reply_was_lost(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RedisStore()
    really_set = store._client.set
    lost: list[int] = []

    def set_and_lose_the_reply(*args: Any, **options: Any) -> Any:
        answer = really_set(*args, **options)
        if not lost:
            lost.append(1)
            raise redis_client.TimeoutError
        return answer

    monkeypatch.setattr(store._client, "set", set_and_lose_the_reply)
    assert store.take(lease("a")) is None
    assert store.take(lease("a")) == Held("asked", None)

"""The caches of answers keep within their bytes, leave a Redis that others need half of its memory, and are fair."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis as redis_client
from django.conf import LazySettings

from inference.answer_caches import OVERHEAD, ProcessAnswers, RedisAnswers
from tests.stores import redis_server

ANSWER = 10_000  # bytes, with what it takes beside itself
MIB = 2**20

Cache = RedisAnswers | ProcessAnswers
MakeCache = Callable[..., RedisAnswers]


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """Run a Redis of this file's own, and return a client of it."""
    with redis_server() as server:
        client: Any = redis_client.Redis.from_url(server.url)
        yield client
        client.close()


@pytest.fixture
def make(store: Any) -> Iterator[MakeCache]:
    """Return a function that makes the cache in Redis; it is empty, and without a bound of its own."""
    store.flushall()
    options = store.connection_pool.connection_kwargs
    url = f"redis://{options['host']}:{options['port']}/0"

    def make_one(seconds: float = 60) -> RedisAnswers:
        cache = RedisAnswers(url, {"KEY_PREFIX": "answers", "OPTIONS": {}})
        cache.default_timeout = seconds
        return cache

    yield make_one
    store.config_set("maxmemory", 0)
    store.config_set("maxmemory-policy", "noeviction")


@pytest.fixture(params=["redis", "process"])
def cache(request: pytest.FixtureRequest, settings: LazySettings) -> Cache:
    """Make either cache, with room for four answers."""
    settings.CACHE_BYTES = 4 * ANSWER
    if request.param == "process":
        answers = ProcessAnswers("test", {"TIMEOUT": 60})
        answers.clear()
        return answers
    return request.getfixturevalue("make")()  # type: ignore[no-any-return]


def text(size: int = ANSWER) -> str:
    """Make an answer that takes about so many bytes."""
    return "x" * (size - OVERHEAD - 50)


def held(cache: Cache, *keys: str) -> str:
    """Name the keys that are there."""
    return "".join(key for key in keys if cache.get(key) is not None)


def counted(store: Any) -> int:
    """Return the bytes that Redis counts, and check that it has the same by account and by answer."""
    total = int(store.get("answers:bytes") or 0)
    assert total == sum(score for _, score in store.zrange("answers:accounts", 0, -1, withscores=True))
    names = [name for key in store.scan_iter("answers:of:*") for name in store.zrange(key, 0, -1)]
    assert total == sum(int(name.split()[0]) for name in names)
    return total


def test_it_keeps_what_it_is_given(cache: Cache) -> None:
    assert cache.keep(1, "a", "text")
    assert cache.get("a") == "text"


def test_it_forgets_the_oldest_for_room(cache: Cache) -> None:
    for key in "abcdef":
        assert cache.keep(1, key, text())
    assert held(cache, *"abcdef") == "cdef"
    assert cache.keep(1, "g", text(3 * ANSWER))
    assert held(cache, *"abcdefg") == "fg"


def test_it_keeps_none_that_has_no_room_at_all(cache: Cache) -> None:
    cache.keep(1, "a", text())
    cache.keep(1, "b", text())
    assert not cache.keep(1, "b", text(5 * ANSWER))
    assert held(cache, "a", "b") == "a", "nor what stood there before"


def test_it_counts_an_answer_once_however_often_it_is_made(cache: Cache) -> None:
    for size in (ANSWER, ANSWER, 2 * ANSWER, 2 * ANSWER, ANSWER, ANSWER):
        cache.keep(1, "a", text(size))
    for key in "bcd":
        cache.keep(1, key, text())
    assert held(cache, *"abcd") == "abcd"


def test_it_keeps_nothing_without_any_room(cache: Cache, settings: LazySettings) -> None:
    settings.CACHE_BYTES = 0
    assert not cache.keep(1, "a", "text")
    assert held(cache, "a") == ""


def test_it_counts_in_the_process_for_all_threads_together(settings: LazySettings) -> None:
    settings.CACHE_BYTES = 2 * ANSWER
    one, other = (ProcessAnswers("test", {"TIMEOUT": 60}) for _ in range(2))
    one.clear()
    for cache, key in ((one, "a"), (other, "b"), (one, "c")):
        cache.keep(1, key, text())
    assert held(other, *"abc") == "bc"
    other.clear()
    one.keep(1, "d", text())
    one.keep(1, "e", text())
    assert held(one, "d", "e") == "de"


def test_it_lets_the_account_that_has_most_make_room(make: MakeCache, store: Any, settings: LazySettings) -> None:
    settings.CACHE_BYTES = 4 * ANSWER
    cache = make()
    cache.keep(1, "mine", text())
    for key in "abcdefgh":
        cache.keep(2, key, text())
    assert held(cache, "mine", *"abcdefgh") == "minefgh"
    cache.keep(3, "theirs", text())
    assert held(cache, "mine", "theirs", *"abcdefgh") == "minetheirsgh"
    assert counted(store) <= settings.CACHE_BYTES


def test_it_forgets_those_over_their_time_by_itself(make: MakeCache, store: Any, settings: LazySettings) -> None:
    settings.CACHE_BYTES = 4 * ANSWER
    short, cache = make(seconds=0.05), make()
    for account in (1, 2):
        short.keep(account, f"short{account}", text())
    time.sleep(0.1)
    assert not store.exists("answers:1:short1", "answers:1:short2")
    for key in "abc":  # each call clears away one account's
        cache.keep(3, key, text())
    assert held(cache, *"abc") == "abc"
    assert counted(store) == pytest.approx(3 * ANSWER, rel=0.1)
    assert store.zrange("answers:accounts", 0, -1) == [b"3"]
    assert 50 < store.ttl("answers:1:a") <= 60


def test_it_counts_an_answer_anew_whose_time_was_over(make: MakeCache, store: Any, settings: LazySettings) -> None:
    settings.CACHE_BYTES = 4 * ANSWER
    for _ in range(3):
        make(seconds=0.05).keep(1, "a", text())
        time.sleep(0.1)
    make().keep(1, "a", text())
    assert counted(store) == pytest.approx(ANSWER, rel=0.1)


def test_it_mends_its_books_when_somebody_deletes_a_part(make: MakeCache, store: Any, settings: LazySettings) -> None:
    settings.CACHE_BYTES = 4 * ANSWER
    cache = make()
    for key in "abcd":
        cache.keep(1, key, text())
    store.delete("answers:of:1")
    assert cache.keep(2, "e", text())
    assert counted(store) == pytest.approx(ANSWER, rel=0.1)


def test_it_takes_no_more_than_half_of_the_memory_of_a_redis_that_does_not_evict(
    make: MakeCache, store: Any, settings: LazySettings
) -> None:
    settings.CACHE_BYTES = 64 * MIB
    cache, most = make(), 12 * MIB
    store.config_set("maxmemory", most)
    kept = [cache.keep(1, f"flood{number}", text(MIB // 2)) for number in range(40)]
    assert all(kept), "the flood makes room for itself"
    assert store.info("memory")["used_memory"] < most * 0.55
    assert held(cache, "flood0", "flood39") == "flood39"
    for number in range(15):
        assert store.set(f"state{number}", b"s" * (MIB // 3))
    assert not cache.keep(1, "a", text(MIB)), "it makes room for the state, and none is left for it"
    assert store.set("more state", "s")


def test_it_leaves_eviction_to_a_redis_that_evicts(make: MakeCache, store: Any, settings: LazySettings) -> None:
    settings.CACHE_BYTES = 4 * ANSWER
    cache = make()
    store.config_set("maxmemory", 8 * MIB)
    store.config_set("maxmemory-policy", "allkeys-lru")
    for number in range(10):
        assert cache.keep(1, f"{number}", text())
    assert held(cache, *"0123456789") == "0123456789"
    assert not store.exists("answers:bytes")
    for number in range(30):
        assert cache.keep(1, f"large{number}", text(MIB))
    assert store.ttl("answers:1:large29") > 0


def test_it_goes_on_when_redis_has_forgotten_its_script(make: MakeCache, store: Any) -> None:
    cache: Any = make()
    store.script_flush()
    assert cache.keep(1, "a", "text")
    assert cache.keep(1, "b", "text")
    assert held(cache, "a", "b") == "ab"

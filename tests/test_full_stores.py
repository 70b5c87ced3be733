"""Stores that take no writes: /health and its readiness say what callers see, until there is room again.

What accounts have answered never fills the one small Redis that has everything.
"""

from __future__ import annotations

import resource
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from inference.fake_provider import FakeUpstream
from launch.environment import free_port
from tests.answers import Answer
from tests.catalogue import make
from tests.running import (
    CHAT,
    EMBEDDER,
    NO_STORE,
    Platform,
    Served,
    chat,
    completion,
    running_platform,
    scripted_provider,
    wait_until,
)
from tests.stores import redis_server

#: Seconds after which it is known that a store takes writes no more, or again.
KNOWN = 5.0
#: Bytes of a small Redis, and inputs whose embeddings are half a megabyte of an answer.
MEMORY, INPUTS = 8 * 2**20, 800
#: Statuses of /health and /health/ready, and of a call.
WELL, AWAY = (200, 200, 200), (503, 503, 503)


@contextmanager
def serving(env: Mapping[str, str]) -> Iterator[Platform]:
    """Run a platform on such stores, with a model that answers."""
    with scripted_provider() as provider, running_platform(env, [Served("m", [provider.base_url])]) as platform:
        provider.script("m", completion("Hello"))
        yield platform


@pytest.fixture(scope="module")
def on_sqlite() -> Iterator[Platform]:
    """Run one on SQLite and a Valkey of its own."""
    with serving({}) as platform:
        yield platform


@pytest.fixture(scope="module")
def on_redis(prepared: Callable[[], dict[str, str]]) -> Iterator[Platform]:
    """Run one on PostgreSQL and a Redis of its own."""
    protected = ("--enable-protected-configs", "local")  # a test changes its folder
    with redis_server(options=protected) as server, serving({**prepared(), "REDIS_URL": server.url}) as platform:
        yield platform


def seen(platform: Platform) -> tuple[int, int, int]:
    """Return what /health, /health/ready and a call answer."""
    asked = platform.ask(CHAT, chat("m", uuid.uuid4().hex)).status
    return platform.ask("/health").status, platform.ask("/health/ready").status, asked


def wait_to_see(platform: Platform, statuses: tuple[int, int, int], what: str) -> None:
    wait_until(lambda: seen(platform) == statuses, what, timeout=KNOWN)


def path_of(platform: Platform) -> Path:
    """Return the SQLite file of a platform."""
    return Path(platform.service.env["DATABASE_URL"].removeprefix("sqlite:///"))


@contextmanager
def full_disk(platform: Platform) -> Iterator[None]:
    """Let no file of the platform grow further than SQLite's log is in the block, as no file does on a full disk.

    That is made the longest, and can't begin anew while somebody reads.
    """
    path, longest = path_of(platform), longest_file(platform)
    reader, writer = (sqlite3.connect(path, isolation_level=None, timeout=20) for _ in range(2))
    with closing(reader), closing(writer):
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_master").fetchone()
        writer.execute("CREATE TABLE filler (content)")
        writer.execute("INSERT INTO filler VALUES (zeroblob(?))", [longest + 2**20])
        with files_bounded(platform, longest_file(platform)):
            yield


def longest_file(platform: Platform) -> int:
    """Return the bytes of the longest file beside a platform's database."""
    return max(file.stat().st_size for file in path_of(platform).parent.iterdir())


@contextmanager
def files_bounded(platform: Platform, longest: int) -> Iterator[None]:
    """Let no process of the platform write beyond so many bytes of a file in the block."""
    processes = [platform.service.process.pid, *platform.service.worker_pids()]
    before = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in processes}
    for pid, (_, hard) in before.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (longest, hard))
    try:
        yield
    finally:
        for pid, limits in before.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def test_it_tells_of_a_full_disk_under_sqlite_until_there_is_room(on_sqlite: Platform) -> None:
    wait_to_see(on_sqlite, WELL, "the platform to be well")
    with full_disk(on_sqlite):
        wait_until(lambda: "database" in on_sqlite.ask("/health").json().get("reasons", {}), "/health to tell", KNOWN)
        told = on_sqlite.ask("/health").json()
        assert (told["status"], told["checks"]["database"]) == ("degraded", "degraded")
        assert told["reasons"]["database"].startswith("The database takes no writes")
        assert seen(on_sqlite) == WELL, "records wait in Valkey"
    wait_until(lambda: "reasons" not in on_sqlite.ask("/health").json(), "/health to be well", KNOWN)


def test_it_takes_a_busy_database_for_a_healthy_one(on_sqlite: Platform) -> None:
    with closing(sqlite3.connect(path_of(on_sqlite), isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        asked: list[float] = []
        while len(asked) < 3:  # an answer is given again for a second
            began = time.monotonic()
            assert on_sqlite.ask("/health").json()["checks"]["database"] == "healthy"
            assert on_sqlite.ask("/health/ready").status == 200
            asked.append(time.monotonic() - began)
            time.sleep(0.6)
        writer.execute("ROLLBACK")
    assert max(asked) < 1, "nobody waits for the writer"


@contextmanager
def read_only(platform: Platform) -> Iterator[None]:
    """Let the platform's PostgreSQL take no writes in the block, as one that is a standby."""
    url = platform.service.env["DATABASE_URL"]
    name = url.rpartition("/")[2]
    with psycopg.connect(url.replace(name, "postgres"), autocommit=True) as operator:

        def end_sessions() -> None:
            operator.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])

        operator.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        end_sessions()
        try:
            yield
        finally:
            operator.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
            end_sessions()


def test_it_is_degraded_on_a_read_only_postgresql_while_redis_takes_what_calls_write(on_redis: Platform) -> None:
    with read_only(on_redis):
        wait_until(lambda: "database" in on_redis.ask("/health").json().get("reasons", {}), "/health to tell", KNOWN)
        told = on_redis.ask("/health").json()
        assert (told["status"], told["checks"]["database"]) == ("degraded", "degraded")
        assert seen(on_redis) == WELL, "records wait in Redis"
    wait_until(lambda: "reasons" not in on_redis.ask("/health").json(), "/health to be well", KNOWN)


@contextmanager
def full(client: Any) -> Iterator[None]:
    """Leave a Redis no memory for writes in the block."""
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


@contextmanager
def replica(client: Any) -> Iterator[None]:
    """Make a Redis the replica of one that is down in the block."""
    client.replicaof("127.0.0.1", str(free_port()))
    try:
        yield
    finally:
        client.replicaof("NO", "ONE")


@contextmanager
def unsaved(client: Any) -> Iterator[None]:
    """Let a Redis fail to write its data to disk in the block."""
    folder = client.config_get("dir")["dir"]
    client.config_set("dir", "/proc")
    client.config_set("save", "3600 1")
    client.set("something", "to save")
    client.bgsave()
    wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "Redis to fail")
    try:
        yield
    finally:
        client.config_set("save", "")
        client.config_set("dir", folder)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (full, "The state store takes no writes: its memory is full (maxmemory)."),
        (replica, "replica"),
        (unsaved, "its disk"),
    ],
)
def test_it_is_away_while_redis_takes_no_writes(
    on_redis: Platform, fault: Callable[[Any], AbstractContextManager[None]], reason: str
) -> None:
    wait_to_see(on_redis, WELL, "the platform to be well")
    client = redis.Redis.from_url(on_redis.service.env["REDIS_URL"], decode_responses=True)
    with closing(client), fault(client):
        wait_to_see(on_redis, AWAY, "/health to tell")
        told = on_redis.ask("/health").json()
        assert (told["status"], told["checks"]["limits"]) == ("unhealthy", "unhealthy")
        assert reason in told["reasons"]["limits"]
        assert told["reasons"]["limits"] in on_redis.manage("doctor")
    wait_to_see(on_redis, WELL, "the platform to be well again")


@dataclass(frozen=True)
class Small:
    """The platform on a Redis of MEMORY bytes, and a client of that."""

    platform: Platform
    redis: Any

    def key(self, name: str) -> str:
        """Make an account with a key that no limit stops."""
        return self.platform.add([], account=name)

    def embed(self, key: str, name: object, **headers: str) -> Answer:
        """Ask for half a megabyte; that leaves the Redis room."""
        body = {"model": EMBEDDER, "input": [f"{name}-{number}" for number in range(INPUTS)]}
        answer = self.platform.ask("/v1/embeddings", body, key=key, headers=headers)
        assert (answer.status, len(answer.body) > 400_000) == (200, True), (
            answer.body[:200],
            self.platform.log[-2000:],
        )
        assert float(self.redis.info("memory")["used_memory"]) < 0.8 * MEMORY
        return answer


@pytest.fixture(scope="module")
def small(prepared: Callable[[], dict[str, str]], fake: FakeUpstream) -> Iterator[Small]:
    """Run it, with a cache as small."""
    bound = ("--maxmemory", str(MEMORY))
    lru = (*bound, "--maxmemory-policy", "allkeys-lru")
    with redis_server(options=bound) as server, redis_server(options=lru) as cache:
        env = {**prepared(), "REDIS_URL": server.url, "CACHE_URL": cache.url}
        with running_platform(env, [Served(EMBEDDER, [fake.base_url], kind="embedding")]) as platform:
            yield Small(platform, server.client())


def test_it_serves_others_whatever_one_has_cached(small: Small) -> None:
    flood = small.key("flood")
    for number in range(19):
        small.embed(flood, number)
    assert small.embed(flood, 18).headers["x-cache"] == "HIT", "its newest answers are cached"
    assert small.platform.ask("/chat", {"message": "new"}, key=small.key("other")).status == 200


def test_it_serves_others_whatever_many_have_kept_under_idempotency_keys(small: Small) -> None:
    headers = {"Idempotency-Key": "first", **NO_STORE}
    made = make(small.platform.service, [], *((f"keeper-{number}", {}, {"e2e": {}}) for number in range(14)))
    keys = [owned.key.plain for owned in made]
    for key in keys:
        small.embed(key, "kept", **headers)
    for key in (keys[0], keys[-1]):
        assert small.embed(key, "kept", **headers).headers.get("idempotency-replayed") == "true"
    assert small.platform.ask("/chat", {"message": "new"}, key=keys[0]).status == 200

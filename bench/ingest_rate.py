"""How many records a second an ingester moves from Redis into the database, and how long one waits for it."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
import redis as redis_client
from bed import ingester
from harness import cpu_seconds, tree

from accounts.limits.backend import LimitBackend
from accounts.tests.limits_fixtures import limits_on
from tests.ledgers import waiting_records
from tests.servers import Service
from tests.stores import Postgres, Redis

RECORDS = 50_000
PACED = 1_000  # records a second
PACED_SECONDS = 10
#: Records between two of which the time until they can be read is taken.
WATCHED = 500


def ingest_rate(service: Service, postgres: Postgres, redis: Redis, callers: Sequence[Any]) -> Iterator[str]:
    """Move records that wait, on one core; then some that come at a pace, and see when each can be read."""
    store = redis_client.Redis.from_url(redis.url)
    backend = limits_on(redis.url)
    with ingester(service) as pid:
        time.sleep(3)  # until it has started
        wait_empty(store)
        yield "| ingester | records | records/s | its CPU ms a record | PostgreSQL's |"
        yield "|---|---|---|---|---|"
        every = sorted(os.sched_getaffinity(0))
        pin([*tree(pid), *tree(postgres.process.pid)], every[:1])
        os.kill(pid, signal.SIGSTOP)
        emit(backend, callers, RECORDS)
        own, database, began = cpu_seconds(pid), cpu_seconds(postgres.process.pid), time.monotonic()
        os.kill(pid, signal.SIGCONT)
        wait_empty(store)
        took = time.monotonic() - began
        own, database = ((cpu_seconds(root) - was) for root, was in ((pid, own), (postgres.process.pid, database)))
        pin([*tree(pid), *tree(postgres.process.pid)], every)
        yield (
            f"| waiting ones, with PostgreSQL on one core | {RECORDS:,} | {RECORDS / took:,.0f} "
            f"| {own * 1000 / RECORDS:.3f} | {database * 1000 / RECORDS:.3f} |"
        )
        own, database, began = cpu_seconds(pid), cpu_seconds(postgres.process.pid), time.monotonic()
        delays = paced(backend, service, callers)
        took, number = time.monotonic() - began, PACED * PACED_SECONDS
        own, database = ((cpu_seconds(root) - was) for root, was in ((pid, own), (postgres.process.pid, database)))
        yield (
            f"| as they come, {PACED:,} a second | {number:,} | {number / took:,.0f} "
            f"| {own * 1000 / number:.3f} | {database * 1000 / number:.3f} |"
        )
    middle, most = sorted(delays)[len(delays) // 2], max(delays)
    yield f"\nUntil a record could be read at that pace: {middle:.2f} s in the middle, {most:.2f} s at most."


def paced(backend: LimitBackend, service: Service, callers: Sequence[Any]) -> list[float]:
    """Emit records evenly; return how many seconds it took until some of them were in the database."""
    delays: list[float] = []
    watchers = []
    began = time.monotonic()
    for number in range(PACED * PACED_SECONDS):
        time.sleep(max(0.0, began + number / PACED - time.monotonic()))
        (identifier,) = emit(backend, callers, 1)
        if number % WATCHED == 0:
            watchers.append(threading.Thread(target=watch, args=(service, identifier, time.monotonic(), delays)))
            watchers[-1].start()
    for watcher in watchers:
        watcher.join()
    return delays


def watch(service: Service, identifier: str, since: float, delays: list[float]) -> None:
    """Note how long it takes until a record is there, and with it what it adds to the rollups."""
    with psycopg.connect(service.env["DATABASE_URL"], autocommit=True) as connection:
        while not connection.execute("SELECT 1 FROM monitoring_requestrecord WHERE id = %s", [identifier]).fetchone():
            time.sleep(0.02)
    delays.append(time.monotonic() - since)


def emit(backend: LimitBackend, callers: Sequence[Any], number: int) -> list[str]:
    """Emit records as requests do, of any keys; return their ids."""
    identifiers = []
    for _ in range(number):
        account_id, account, key_id, key = random.choice(callers)
        now = time.time_ns() // 1000
        identifier = str(uuid.UUID(int=(now // 1000 << 80) | 7 << 76 | 2 << 62 | random.getrandbits(62)))
        record = {
            "label": identifier,
            "admitted_at": now,
            "account_id": account_id,
            "account_name": account,
            "key_id": key_id,
            "key_name": key,
            "endpoint": random.choice(("chat", "summarize")),
            "model": random.choice(("gpt-4o-mini", "gpt-4o")),
            "status": 200,
            "cache": random.choice(("hit", "miss", "miss")),
            "input_tokens": 120,
            "output_tokens": 80,
            "cost": 66_000,
            "latency_ms": random.expovariate(1 / 800),
            "attempts": 1,
        }
        backend.emit(account_id, identifier, record)
        identifiers.append(identifier)
    return identifiers


def pin(pids: Sequence[int], cores: Sequence[int]) -> None:
    """Let processes run on these cores only."""
    for pid in pids:
        os.sched_setaffinity(pid, cores)


def wait_empty(store: Any) -> None:
    """Wait until no record waits."""
    while waiting_records(store):
        time.sleep(0.05)

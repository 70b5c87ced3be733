"""`kill -9` of workers and ingesters, crashes of PostgreSQL, at random, under load: log, rollups and ledger agree.

What was answered is in the log once. What was cut off may be there, once. The rollups are what the log adds up to, by
SQL that knows nothing of the code that writes them, and the ledgers in Redis hold what the log says was used.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

import psycopg
import pytest
import redis

from accounts.limits.bounds import Amount
from inference.upstream.fake import FakeUpstream
from monitoring.rollups.histograms import counts, unpack
from tests.ledgers import Ledger, counted_refusals, rows, waiting_records
from tests.load import Ask, Reply, ask
from tests.processes import spawn, stop, wait_until
from tests.servers import ROOT, Postgres, Redis, Service, aiapi_server

WORKERS = 2
INGESTERS = 2
CLIENTS = 16
LEASE_SECONDS = 5
ANSWERS = (1, 50)  # between one blow and the next
ANSWERED = (200, 400)
BACK_OFF = 0.1  # seconds that a client waits after anything but an answer
REPEATED = 30  # different questions that are asked again and again, and answered from the cache

SETUP = """
import json
from accounts.tests.factories import make_account, make_key, make_tier
tier = make_tier("short", requests_per_minute=None, max_output_tokens=16)
accounts = [make_account(name) for name in ("acme", "globex")]
issued = [make_key(account=account, tier=tier) for account in accounts for _ in range(2)]
print(json.dumps([[each.key.account_id, each.key.pk, each.plain] for each in issued]))
"""

#: What the log adds up to, by the columns of the finest rollups; money in nano-dollars.
LOG_SUMS = """
SELECT floor(extract(epoch FROM admitted_at) / 3600)::int, account_id, key_id, endpoint, model,
       CASE WHEN status < 400 THEN 'ok' WHEN status >= 500 THEN 'failed'
            WHEN status = 429 THEN 'limited' ELSE 'invalid' END AS outcome,
       sum(count), sum(count) FILTER (WHERE cache = 'hit'), sum(count) FILTER (WHERE cache = 'coalesced'),
       sum(count) FILTER (WHERE cache = 'miss'), sum(input_tokens), sum(output_tokens),
       sum(cost * 1000000000), sum(saved_cost * 1000000000),
       count(*) FILTER (WHERE status < 400 OR status >= 500)
FROM monitoring_requestrecord GROUP BY 1, 2, 3, 4, 5, 6
"""
ROLLUPS = """
SELECT grain, start, account_id, key_id, endpoint, model, outcome,
       requests, hits, coalesced, misses, input_tokens, output_tokens, cost, saved_cost, latency
FROM monitoring_rollup
"""

Sums = Counter[tuple[Any, ...]]


@dataclass
class Crashes:
    """The platform with its ingesters, the accounts and keys that ask it, and what came back by label."""

    service: Service
    postgres: Postgres
    store: Any
    folder: Path
    chance: random.Random
    keys: list[tuple[int, int, str]] = field(default_factory=list)
    ingesters: list[Popen[bytes]] = field(default_factory=list)
    replies: dict[str, Reply] = field(default_factory=dict)
    answered: int = 0
    is_over: bool = False

    @contextmanager
    def under_load(self) -> Iterator[None]:
        """Have clients ask without end, until the block is left and all are answered."""

        async def clients() -> None:
            await asyncio.gather(*(self._client() for _ in range(CLIENTS)))

        thread = threading.Thread(target=lambda: asyncio.run(clients()))
        thread.start()
        try:
            yield
        finally:
            self.is_over = True
            thread.join()

    async def _client(self) -> None:
        while not self.is_over:
            label = uuid.uuid4().hex
            message = self.chance.choice((label, label, f"again {self.chance.randrange(REPEATED)}", ""))
            _, _, key = self.chance.choice(self.keys)
            reply = self.replies[label] = await ask(Ask(self.service.port, key, message, label))
            self.answered += reply.status in ANSWERED
            if reply.status not in ANSWERED:
                await asyncio.sleep(BACK_OFF)

    def strike(self) -> None:
        """Kill a worker, an ingester and the database, in any order."""
        blows = [self.kill_worker, self.kill_ingester, self.crash_database]
        for blow in self.chance.sample(blows, len(blows)):
            wanted = self.answered + self.chance.randint(*ANSWERS)
            wait_until(lambda at=wanted: self.answered >= at, "answers")  # type: ignore[misc]
            blow()

    def kill_worker(self) -> None:
        """Kill any web worker; gunicorn starts another."""
        self.service.kill_worker(self.chance.choice(self.service.worker_pids()))

    def start_ingester(self) -> None:
        """Run another `manage.py ingest_usage`."""
        command = [sys.executable, "manage.py", "ingest_usage"]
        self.ingesters.append(spawn(command, self.folder / "ingester.log", env=self.service.env, cwd=ROOT))

    def kill_ingester(self) -> None:
        """Kill any ingester, and start another."""
        victim = self.ingesters.pop(self.chance.randrange(len(self.ingesters)))
        assert victim.poll() is None, (self.folder / "ingester.log").read_text()
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        self.start_ingester()

    def crash_database(self) -> None:
        """End PostgreSQL in the middle of what it does, and start it again."""
        self.postgres.crash()
        self.postgres.restart()

    def ledgers(self) -> list[Ledger]:
        """Return the ledgers of all keys and accounts."""
        subjects = {(account, f"key:{key}") for account, key, _ in self.keys}
        subjects |= {(account, f"account:{account}") for account, _, _ in self.keys}
        return [Ledger(self.store, account, subject) for account, subject in sorted(subjects)]

    def wait_until_settled(self) -> None:
        """Wait until the calls of the dead are charged, and all records are in the database."""
        for ledger in self.ledgers():
            wait_until(lambda at=ledger: not at.reserved.tokens, "reservations to expire", LEASE_SECONDS + 30)  # type: ignore[misc]
        wait_until(lambda: not counted_refusals(self.store), "counts of refusals")
        wait_until(lambda: not waiting_records(self.store), "the records")


@pytest.fixture(scope="module")
def crashed(
    prepared: Callable[[], dict[str, str]],
    fake: FakeUpstream,
    postgres: Postgres,
    own_redis: Redis,
    scale: Callable[[int, int], int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Crashes]:
    """Run it all through some rounds of crashes, and wait until what they left behind is settled."""
    fake.reset()
    env = {**prepared(), "REDIS_URL": own_redis.url, "LIMITS_LEASE_SECONDS": str(LEASE_SECONDS)}
    commit_durably(env["DATABASE_URL"])
    with aiapi_server(env, workers=WORKERS, prepare=False) as service:
        store = redis.Redis.from_url(own_redis.url)
        crashes = Crashes(service, postgres, store, tmp_path_factory.mktemp("crashes"), random.Random())
        for _ in range(INGESTERS):
            crashes.start_ingester()
        made = service.manage("shell", "-c", SETUP).strip().splitlines()[-1]
        crashes.keys = [tuple(key) for key in json.loads(made)]
        fake.set(latency_ms=40)
        with crashes.under_load():
            for _ in range(scale(4, 20)):
                crashes.strike()
        crashes.wait_until_settled()
        yield crashes
        for ingester in crashes.ingesters:
            stop(ingester, signal.SIGTERM)
    fake.reset()


def commit_durably(url: str) -> None:
    """Have a database survive a crash of its server, as each does outside of tests."""
    name = psycopg.sql.Identifier(url.rpartition("/")[2])
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("ALTER DATABASE {} SET synchronous_commit TO on").format(name))


def test_it_logs_what_was_answered_once_and_nothing_twice(crashed: Crashes) -> None:
    statuses = Counter(reply.status for reply in crashed.replies.values())
    assert statuses.keys() <= {0, 200, 400, 503}
    assert statuses[200] > 50
    assert statuses[0], "nobody was cut off"
    logged = Counter(label for (label,) in rows(crashed.service, "SELECT label FROM monitoring_requestrecord"))
    assert set(logged.values()) == {1}
    assert logged.keys() <= crashed.replies.keys()
    assert {label for label, reply in crashed.replies.items() if reply.status == 200} <= logged.keys()


def test_it_counts_each_refusal_once(crashed: Crashes) -> None:
    """Beyond a rate, one record stands for many of a key."""
    statuses = Counter(reply.status for reply in crashed.replies.values())
    ((refused,),) = rows(crashed.service, "SELECT sum(count) FROM monitoring_requestrecord WHERE status = 400")
    assert 0 < statuses[400] <= refused <= statuses[400] + statuses[0] + statuses[503]


def test_it_logs_the_status_that_was_answered(crashed: Crashes) -> None:
    for label, status, count in rows(crashed.service, "SELECT label, status, count FROM monitoring_requestrecord"):
        assert count == 1 or status == 400
        assert crashed.replies[label].status in (0, 503, status)


def test_it_has_rollups_that_are_what_the_log_adds_up_to(crashed: Crashes) -> None:
    from_log: dict[tuple[Any, ...], tuple[int, ...]] = {}
    for row in rows(crashed.service, LOG_SUMS):
        from_log["kh", *row[:6]] = tuple(int(amount or 0) for amount in row[6:])
    kept = {}
    for *key_and_sums, latency in rows(crashed.service, ROLLUPS):
        timed = sum(count for _, count in counts(unpack(bytes(latency))))
        kept[tuple(key_and_sums[:7])] = (*key_and_sums[7:], timed)
    assert from_log
    assert {row: sums for row, sums in kept.items() if row[0] == "kh"} == from_log
    for grain in {row[0] for row in kept}:
        assert totals(kept, grain) == totals(kept, "kh", by_outcome=grain[0] == "t"), grain
    assert len({row[0] for row in kept}) == 14  # the minutes too: they are kept for longer than this takes


def totals(
    kept: dict[tuple[Any, ...], tuple[int, ...]], grain: str, *, by_outcome: bool = False
) -> dict[tuple[Any, ...], list[int]]:
    """Add up the rows of a grain over time and callers, and over endpoints and models as well (`by_outcome`)."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for (of, _, _, _, endpoint, model, outcome), sums in kept.items():
        if of == grain:
            what = ("", "", outcome) if by_outcome else (endpoint, model, outcome)
            known = found.setdefault(what, [0] * len(sums))
            known[:] = [a + b for a, b in zip(known, sums, strict=True)]
    return found


def test_it_has_ledgers_that_hold_what_the_log_says_was_used(crashed: Crashes) -> None:
    for ledger in crashed.ledgers():
        recorded = ledger.recorded(crashed.service)
        assert ledger.reserved == Amount()
        assert ledger.settled == recorded
        assert recorded.tokens
        assert recorded.cost


def test_it_passes_the_nightly_check(crashed: Crashes) -> None:
    told = crashed.service.manage("check_rollups")
    assert told.splitlines() == ["The rollups agree with the log.", "The ledgers agree with the records."]

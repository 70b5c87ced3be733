"""Blow after blow against a platform at work: whatever is killed, emptied or full, its books stay right.

Two servers of two workers run behind a balancer on PostgreSQL and Redis, with a worker beside them. Callers ask them
fifty times a second: plain and streamed, new questions and cached ones, with a budget, a rate and a slot, on kept
connections and on new ones. In the midst of it comes a blow. Once all is quiet, the log, the rollups, the ledgers, the
provider's bill and what callers were answered agree, no limit was passed, and nothing failed that may not.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import Popen
from typing import Any

import psycopg
import pytest
import redis

from inference.fake_provider import FakeUpstream
from tests.books import Books
from tests.catalogue import Owned, make
from tests.ledgers import empty, waiting_records
from tests.network import Balancer, balancer
from tests.processes import is_running, spawn, stop, wait_until
from tests.servers import ROOT, Service, aiapi_server
from tests.stores import Postgres, Redis, clock, redis_server
from tests.traffic import REFUSED, Manner, Traffic, ask_live

pytestmark = pytest.mark.timeout(300)  # the first blow starts all servers

WORKERS = 2
LEASE_SECONDS = 5
MODEL = "gpt-3.5-turbo"
ROUNDS = 4 if os.environ.get("FULL") == "1" else 1
IDLE = 20
UNBOUND = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

#: Limits of the keys in each blow's account; what is asked exhausts them.
RATE, SLOTS, BUDGET = 10, 1, 800
LIMITS: dict[str, dict[str, Any]] = {
    "free": {},
    "rated": {"requests_per_minute": RATE},
    "narrow": {"concurrent_requests": SLOTS},
    "budgeted": {"monthly_token_budget": BUDGET},
}
AGREE = ["The rollups agree with the log.", "The ledgers agree with the records."]


#: How keys are used: streamed, repeated; each on a kept connection and on new ones.
MANNERS = [
    ("free", False, False),
    ("free", True, False),
    ("free", False, True),
    ("free", True, True),
    ("free", False, False),
    ("free", True, False),
    ("rated", False, False),
    ("narrow", True, False),
    ("budgeted", False, False),
    ("budgeted", True, False),
]


@dataclass
class Chaos:
    """The platform, all that it consists of, and who asks it."""

    env: dict[str, str]
    postgres: Postgres
    redis: Redis
    fake: FakeUpstream
    clock: Path
    folder: Path
    stack: ExitStack
    front: Balancer
    casts: list[Owned] = field(default_factory=list)
    servers: list[Service] = field(default_factory=list)
    worker: Popen[bytes] | None = None

    @property
    def store(self) -> Any:
        return redis.Redis.from_url(self.redis.url, socket_timeout=5)

    def start_server(self) -> None:
        """Start one server more, and put it behind the balancer once it answers."""
        server = aiapi_server(self.env, workers=WORKERS, prepare=False)
        self.servers.append(self.stack.enter_context(server))
        self.front.targets.append(self.servers[-1].port)

    def start_worker(self) -> None:
        """Run `manage.py worker` beside the servers; it watches as it does outside of tests."""
        command = [sys.executable, "manage.py", "worker"]
        self.worker = spawn(command, self.folder / "worker.log", env=self.servers[0].env, cwd=ROOT)

    def kill_worker(self) -> None:
        assert self.worker is not None
        self.worker.kill()
        self.worker.wait()

    def reasons(self) -> str:
        """Ask a server what is wrong with the limits, in its own words."""
        told = self.servers[0].request("GET", "/health").json()
        return str(told.get("reasons", {}).get("limits", ""))

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.store.time()[0], UTC)


@dataclass(frozen=True)
class Blow:
    """What is done to the platform, and what may come of it: kinds of failures, and how many at most."""

    name: str
    strike: Callable[[Chaos, Traffic], int | None]
    may_fail: frozenset[str] = frozenset()
    at_most: int = 0
    #: How often a rate or a slot may be used, where processes keep it by themselves or it begins anew.
    times_limits: int = 1


def kill_web_workers(chaos: Chaos, _: Traffic) -> None:
    """Kill all web workers of a server; gunicorn starts others."""
    server = chaos.servers[0]
    killed = server.worker_pids()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len({*server.worker_pids()} - {*killed}) == WORKERS, "new workers")


def kill_worker(chaos: Chaos, traffic: Traffic) -> None:
    """Kill the worker, and start another a second later."""
    chaos.kill_worker()
    traffic.wait_for(50)
    chaos.start_worker()


def kill_master(chaos: Chaos, _: Traffic) -> None:
    """Kill gunicorn's master, whose workers then end by themselves, and start another server."""
    server = chaos.servers.pop(0)
    workers = server.worker_pids()
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not any(is_running(pid) for pid in workers), "its workers to end")
    chaos.front.targets.remove(server.port)
    chaos.start_server()


def restart_redis(chaos: Chaos, traffic: Traffic) -> None:
    """Stop Redis, and start it again two seconds later."""
    chaos.redis.stop()
    traffic.wait_for(100)
    chaos.redis.restart()


def empty_redis(chaos: Chaos, _: Traffic) -> int:
    """Empty Redis while records wait there; return how many."""
    chaos.kill_worker()
    wait_until(lambda: waiting_records(chaos.store) > 20, "records to wait")
    lost = empty(chaos.store)
    chaos.start_worker()
    return lost


def fill_redis(chaos: Chaos, traffic: Traffic) -> None:
    """Have Redis refuse to write since its memory is full, for two seconds."""
    chaos.store.config_set("maxmemory", 1)
    traffic.wait_for(100)
    chaos.store.config_set("maxmemory", 0)


def fill_disk_of_redis(chaos: Chaos, traffic: Traffic) -> None:
    """Have Redis's append-only file refuse to grow, for two seconds."""
    resource.prlimit(chaos.redis.process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    traffic.wait_for(100)
    wait_until(lambda: "it can't write to its disk" in chaos.reasons(), "/health to tell", 10)
    resource.prlimit(chaos.redis.process.pid, resource.RLIMIT_FSIZE, UNBOUND)


def fill_disk_of_postgres(chaos: Chaos, traffic: Traffic) -> None:
    """Have PostgreSQL's files refuse to grow, its write-ahead log too, which ends it; start it two seconds later."""
    chaos.postgres.fill_disk()
    traffic.wait_for(100)
    chaos.postgres.crash()
    chaos.postgres.restart()


def restart_postgres(chaos: Chaos, traffic: Traffic) -> None:
    """Crash PostgreSQL, and start it again two seconds later."""
    chaos.postgres.crash()
    traffic.wait_for(100)
    chaos.postgres.restart()


def reload(chaos: Chaos, traffic: Traffic) -> None:
    """Replace a server's workers; nobody waits for the new ones to load."""
    server = chaos.servers[0]
    old, idle, told_at = set(server.worker_pids()), open_idle(server), time.monotonic()
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: not old & set(server.worker_pids()), "the old workers to end", 120)
    took = time.monotonic() - told_at
    meanwhile = [each.seconds for each in traffic.outcomes if each.began_at > told_at]
    assert max(meanwhile) < took / 2, "nobody waits for a new worker to load"
    assert len(server.worker_pids()) == WORKERS
    assert last_words(idle) == {b""}, "idle connections are closed, and nothing is written"


def roll(chaos: Chaos, traffic: Traffic) -> None:
    """Stop each server, as an orchestrator does: nobody tells the balancer before; then start another."""
    for _ in range(2):
        leaving = chaos.servers.pop(0)
        idle, told_at = open_idle(leaving), time.monotonic()
        leaving.process.send_signal(signal.SIGTERM)
        assert last_words(idle) == {b""}, "idle connections are closed, and nothing is written"
        leaving.process.wait(20)
        assert any(each.says_close for each in traffic.outcomes if each.manner.is_kept and each.began_at > told_at)
        chaos.front.targets.remove(leaving.port)
        chaos.start_server()


def several(chaos: Chaos, traffic: Traffic) -> None:
    """Strike several blows, in any order and at any time."""
    blows = [kill_web_workers, kill_worker, restart_postgres]
    for strike in random.sample(blows, len(blows)):
        traffic.wait_for(random.randint(1, 50))
        strike(chaos, traffic)


def open_idle(server: Service) -> list[socket.socket]:
    """Open connections to a server that wait: some were answered once, and some never used."""
    connections = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(2 * IDLE)]
    for connection in connections[:IDLE]:
        assert b"200 OK" in ask_live(connection)
    return connections


def last_words(connections: list[socket.socket]) -> set[bytes]:
    words = {connection.recv(65_536) for connection in connections}
    for connection in connections:
        connection.close()
    return words


def pass_month(chaos: Chaos, traffic: Traffic) -> None:
    """Move the clock of all processes to three seconds before the end of the month, and wait for the next."""
    now = chaos.now()
    border = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
    chaos.clock.write_text(f"+{(border - timedelta(seconds=3) - datetime.now(UTC)).total_seconds():.0f}")
    wait_until(lambda: chaos.now() >= border, "the next month", 30)
    traffic.wait_for(100)


CUT_OFF = frozenset({"cut off"})
AWAY = frozenset({"503 dependency_unavailable"})
BLOWS = [
    Blow("reload", reload),
    Blow("rolling restart", roll),
    Blow("kill -9 of web workers", kill_web_workers, CUT_OFF, 40),
    Blow("kill -9 of the worker", kill_worker),
    Blow("kill -9 of a master", kill_master, CUT_OFF, 40),
    Blow("Redis stopped and started", restart_redis, AWAY, 100, 2 * 2 * WORKERS),
    Blow("Redis emptied", empty_redis, times_limits=2),
    Blow("Redis's memory full", fill_redis, AWAY, 200),
    Blow("Redis's disk full", fill_disk_of_redis, AWAY, 200),
    Blow("PostgreSQL crashed and started", restart_postgres, AWAY, 300),
    Blow("PostgreSQL's disk full", fill_disk_of_postgres, AWAY, 300),
    Blow("several of these", several, CUT_OFF | AWAY, 400),
]
MONTH = Blow("the end of a month", pass_month, times_limits=2)


@contextmanager
def running_chaos(
    env: dict[str, str], postgres: Postgres, fake: FakeUpstream, folder: Path, *, servers: int, casts: int, moved: bool
) -> Iterator[Chaos]:
    """Run it all with so many servers, and accounts for so many blows; where `moved`, by a clock that can be moved."""
    fake.reset()
    with ExitStack() as stack:
        own_clock = clock(folder / "clock") if moved else {}
        store = stack.enter_context(redis_server(appendonly=True, env={**os.environ, **own_clock}))
        own = {"REDIS_URL": store.url, "LIMITS_LEASE_SECONDS": str(LEASE_SECONDS), **own_clock}
        own["REDIS_TIMEOUT"] = "1"  # a store that a busy machine makes slow is not away: budgets would be refused
        commit_durably(env["DATABASE_URL"])
        front = stack.enter_context(balancer())
        chaos = Chaos({**env, **own}, postgres, store, fake, folder / "clock", folder, stack, front)
        for _ in range(servers):
            chaos.start_server()
        keys = {name: {"max_output_tokens": 16, **limits} for name, limits in LIMITS.items()}
        chaos.casts = make(chaos.servers[0], [], *((f"cast-{number}", {}, keys) for number in range(casts)))
        chaos.start_worker()
        yield chaos
        assert chaos.worker is not None
        stop(chaos.worker, signal.SIGTERM)
    fake.reset()


@pytest.fixture(scope="module")
def chaos(
    prepared: Callable[[], dict[str, str]],
    fake: FakeUpstream,
    postgres: Postgres,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Chaos]:
    folder, casts = tmp_path_factory.mktemp("chaos"), ROUNDS * len(BLOWS)
    with running_chaos(prepared(), postgres, fake, folder, servers=2, casts=casts, moved=False) as running:
        yield running


def commit_durably(url: str) -> None:
    """Have a database survive a crash of its server, as each does outside of tests."""
    name = psycopg.sql.Identifier(url.rpartition("/")[2])
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("ALTER DATABASE {} SET synchronous_commit TO on").format(name))


@pytest.mark.parametrize("blow", BLOWS * ROUNDS, ids=lambda blow: blow.name)
def test_it_keeps_its_books(
    chaos: Chaos, blow: Blow, scale: Callable[[int, int], int], record_property: Callable[[str, object], None]
) -> None:
    record_property("told", assert_books_after(chaos, blow, answers=scale(75, 500)))


def test_it_passes_the_nightly_check(chaos: Chaos) -> None:
    assert chaos.servers[0].manage("check_rollups").splitlines() == AGREE


def test_it_keeps_its_books_over_the_end_of_a_month(
    prepared: Callable[[], dict[str, str]],
    fake: FakeUpstream,
    postgres: Postgres,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Only this one has another clock: under that library, a fork now and then never returns in the child."""
    with running_chaos(prepared(), postgres, fake, tmp_path, servers=1, casts=1, moved=True) as chaos:
        record_property("told", assert_books_after(chaos, MONTH, answers=75))
        assert chaos.servers[0].manage("check_rollups").splitlines() == AGREE


def assert_books_after(chaos: Chaos, blow: Blow, *, answers: int) -> str:
    """Strike in the midst of traffic that goes on for so many answers more; return what there is to tell.

    Books, failures and every limit are held to what the blow may do.
    """
    cast = chaos.casts.pop()
    chaos.fake.reset()
    chaos.fake.set(latency_ms=150, chunk_interval_ms=20)
    manners = [
        Manner(cast.plain[name], is_streamed, is_repeated, is_kept)
        for is_kept in (True, False)
        for name, is_streamed, is_repeated in MANNERS
    ]
    traffic = Traffic(chaos.front.port, MODEL, manners)
    names = {key.plain: key.name for key in cast.keys}
    keys = {key.name: key.id for key in cast.keys}
    books = Books(chaos.servers[0], chaos.store, chaos.fake, cast.id, keys, traffic.outcomes)
    with books.watched("budgeted"), traffic.running():
        traffic.wait_for(50)
        lost = blow.strike(chaos, traffic) or 0
        traffic.wait_for(answers)
    wrong: list[str] = []

    def is_right() -> bool:
        wrong[:] = books.wrong(lost=lost)
        return not wrong

    try:
        wait_until(is_right, "the books", LEASE_SECONDS + 25)
    except AssertionError as error:
        raise AssertionError("\n".join(wrong)) from error
    failed = Counter(f"{each.failure} ({names[each.manner.key]})" for each in traffic.failures())
    told = f"{blow.name}: {len(traffic.outcomes)} requests, {sum(failed.values())} failed {dict(failed)}, "
    told += (
        f"{sum(each.status == REFUSED for each in traffic.outcomes)} refused, {dict(books.by_source())}, {lost} lost"
    )
    assert {each.failure for each in traffic.failures()} <= blow.may_fail, told
    assert sum(failed.values()) <= blow.at_most, told
    assert books.most_in_a_minute("rated") <= RATE * blow.times_limits
    assert books.most_at_once(cast.plain["narrow"]) <= SLOTS * blow.times_limits
    assert books.peaks["budgeted"] <= BUDGET
    assert len(books.months()) == (2 if blow is MONTH else 1)
    return f"{told}, slowest {max(each.seconds for each in traffic.outcomes):.1f} s"

"""The nightly check on a platform at work: what is on its way is no fault, and a fault is found all the same."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from inference.fake_provider import FakeUpstream
from tests.ledgers import ingester, rows, waiting_records
from tests.load import Ask, ask
from tests.processes import wait_until
from tests.servers import ROOT, Postgres, Redis, aiapi_server
from tests.sites import Owned, Site

CLIENTS = 8
CHECK = ("check_rollups", "--days", "1")
AGREE = "The ledgers agree with the records."

_numbers = itertools.count(1)


@pytest.fixture
def at_work(
    prepared: Callable[[], dict[str, str]], fake: FakeUpstream, postgres: Postgres, own_redis: Redis
) -> Iterator[Site]:
    """Run a platform of two web workers, without a worker that ingests."""
    fake.reset()
    with aiapi_server({**prepared(), "REDIS_URL": own_redis.url}, workers=2, prepare=False) as service:
        yield Site(service, fake, own_redis, postgres)
    fake.reset()
    redis.Redis.from_url(own_redis.url).flushall()


@contextmanager
def load(site: Site, callers: list[Owned]) -> Iterator[list[int]]:
    """Have clients ask without end, until the block is left; yield the statuses that came back so far."""
    statuses: list[int] = []
    is_over = threading.Event()

    async def client(owned: Owned) -> None:
        for plain in owned.secrets:
            if is_over.is_set():
                return
            statuses.append((await ask(Ask(site.service.port, plain, str(next(_numbers))))).status)

    async def clients() -> None:
        await asyncio.gather(*(client(owned) for owned in itertools.islice(itertools.cycle(callers), CLIENTS)))

    thread = threading.Thread(target=lambda: asyncio.run(clients()))
    thread.start()
    try:
        yield statuses
    finally:
        is_over.set()
        thread.join()


def checked(site: Site) -> subprocess.CompletedProcess[str]:
    """Run the check, whatever it says."""
    command = [sys.executable, "manage.py", *CHECK]
    return subprocess.run(command, env=site.service.env, cwd=ROOT, capture_output=True, text=True, check=False)


def test_it_finds_nothing_wrong_while_calls_go_on(at_work: Site, tmp_path: Path) -> None:
    model_budget = {"model_budgets": {"gpt-3.5-turbo": [10_000_000, None]}}
    callers = at_work.make((model_budget, {}, 2), ({}, model_budget, 2))
    at_work.fake.set(latency_ms=20)
    with ingester(at_work.service, tmp_path / "log"), load(at_work, callers) as statuses:
        wait_until(lambda: len(statuses) > 20, "answers")
        before = len(statuses)
        assert AGREE in at_work.service.manage(*CHECK)
        assert len(statuses) > before + 20
    assert set(statuses) == {200}


def test_it_tells_a_fault_from_what_is_on_its_way(at_work: Site, tmp_path: Path) -> None:
    (owned, other) = at_work.make(({}, {}, 1), ({}, {}, 1))
    with load(at_work, [owned, other]) as statuses:
        wait_until(lambda: len(statuses) > 20, "answers")
    at_work.fake.set(latency_ms=8_000)
    hanging = threading.Thread(target=lambda: asyncio.run(ask(Ask(at_work.service.port, owned.key.plain, "wait"))))
    hanging.start()
    ledger = at_work.ledger(owned)
    wait_until(lambda: ledger.reserved.tokens > 0, "a call to be open")
    assert waiting_records(at_work.store) > 20
    assert AGREE in at_work.service.manage(*CHECK)
    at_work.store.hincrby(ledger.name, "st", 7)
    found = checked(at_work)
    assert found.returncode == 1
    (line, _) = found.stderr.splitlines()
    assert line.endswith(f"(key:{owned.key.id}) was charged 7 tokens too much")
    hanging.join()
    with ingester(at_work.service, tmp_path / "log"):
        wait_until(lambda: not waiting_records(at_work.store), "the records")
    assert rows(at_work.service, "SELECT count(*) FROM monitoring_requestrecord") == [(len(statuses) + 1,)]
    assert checked(at_work).stderr.splitlines()[0] == line

"""Several web workers on PostgreSQL and Redis, and a worker beside them: exact together, and when one is killed."""

from __future__ import annotations

import http.client
import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from accounts.limits.redis import records_stream
from accounts.limits.types import SHARDS
from inference.fake_provider import FakeUpstream
from tests.processes import Process, wait_until
from tests.servers import Answer, Service, aiapi_server, redis_server, start_worker

WORKERS = 4
LEASE_SECONDS = 5
PREMIUM = 20
#: Requests at once: many more than the 60 refusals that a key has records of its own for in each of two minutes.
ASKED = 200

SETUP = """
import json
from accounts.models import Tier
from accounts.tests.factories import make_account, make_key
one = Tier.objects.create(name="one-at-a-time", concurrent_requests=1)
free = Tier.objects.create(name="unlimited")
premium = Tier.objects.get(name="premium")
acme, globex = make_account("acme"), make_account("globex")
keys = {
    "first": make_key(account=acme, tier=premium), "second": make_key(account=acme, tier=premium),
    "single": make_key(account=acme, tier=one), "busy": make_key(account=globex, tier=free, name="busy"),
    "idle": make_key(account=globex, tier=free, name="idle"),
}
print(json.dumps({name: [issued.plain, issued.key.pk] for name, issued in keys.items()}))
"""


@dataclass
class Cluster:
    """The platform with its stores, its provider, and a process that ingests; keys by name, each with its id."""

    service: Service
    fake: FakeUpstream
    store: Any
    keys: dict[str, tuple[str, int]]
    folder: Path
    worker: Process | None = None

    def chat(self, key: str, message: str) -> Answer:
        """Ask with a key of that name."""
        return self.service.request("POST", "/chat", {"message": message}, key=self.keys[key][0])

    def start_worker(self) -> None:
        """Run `manage.py worker`."""
        self.worker = start_worker(self.service.env, self.folder / "worker.log")

    def wait_for_records(self) -> None:
        """Wait until no record is on its way."""
        streams = [records_stream(shard) for shard in range(SHARDS)]
        wait_until(lambda: self.store.exists(*streams) == 0 or not any(map(self.store.xlen, streams)), "the records")

    def rows(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Ask the database, in SQL."""
        with psycopg.connect(self.service.env["DATABASE_URL"]) as connection:
            return connection.execute(query, arguments).fetchall()

    def stats(self, key: str) -> Any:
        """Ask for the statistics of a key's account."""
        return self.service.request("GET", "/stats", key=self.keys[key][0]).json()


@pytest.fixture(scope="module")
def cluster(
    prepared: Callable[[], dict[str, str]], fake: FakeUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Run it all, with leases that end after five seconds."""
    folder = tmp_path_factory.mktemp("cluster")
    fake.reset()
    with redis_server() as server:
        env = {**prepared(), "REDIS_URL": server.url, "LIMITS_LEASE_SECONDS": str(LEASE_SECONDS)}
        with aiapi_server(env, workers=WORKERS, prepare=False) as service:
            keys = json.loads(service.manage("shell", "-c", SETUP).strip().splitlines()[-1])
            built = Cluster(service, fake, redis.Redis.from_url(server.url), keys, folder)
            built.start_worker()
            yield built
            if built.worker is not None:
                built.worker.send_signal(signal.SIGTERM)
                assert built.worker.wait(20) == 0


@contextmanager
def asking(cluster: Cluster, key: str, message: str) -> Iterator[int]:
    """Ask, and yield the id of the worker that waits for the provider's answer."""
    connection = http.client.HTTPConnection("127.0.0.1", cluster.service.port, timeout=60)
    headers = {"Content-Type": "application/json", "X-API-Key": cluster.keys[key][0]}
    connection.request("POST", "/chat", json.dumps({"message": message}), headers)
    wait_until(lambda: cluster.fake.totals()["running"] == 1, "the call to reach the provider")
    yield worker_of(cluster.service, connection.sock.getsockname()[1])
    with pytest.raises((http.client.HTTPException, OSError)):
        connection.getresponse()
    connection.close()


def worker_of(service: Service, client_port: int) -> int:
    """Find the worker that holds the server's end of a connection, by its socket's number."""
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = f"{service.port:04X}", f"{client_port:04X}"
    (inode,) = [row[9] for row in table if (row[1].rpartition(":")[2], row[2].rpartition(":")[2]) == ends]
    for pid in service.worker_pids():
        if any(
            str(fd.readlink()) == f"socket:[{inode}]" for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()
        ):
            return pid
    raise AssertionError(f"no worker holds the connection from port {client_port}")


@pytest.mark.parametrize("key", ["first", "second"])
def test_it_admits_exactly_the_limit_over_all_workers(cluster: Cluster, key: str) -> None:
    assert len(cluster.service.worker_pids()) == WORKERS
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: cluster.chat(key, "the same for all"), range(ASKED)))
    assert Counter(answer.status for answer in answers) == {200: PREMIUM, 429: ASKED - PREMIUM}
    assert all(0 < int(answer.headers["retry-after"]) <= 60 for answer in answers if answer.status == 429)

    def recorded() -> tuple[Any, ...]:
        query = "SELECT sum(count), count(*) FROM monitoring_requestrecord WHERE key_id = %s"
        return cluster.rows(query, cluster.keys[key][1])[0]

    wait_until(lambda: recorded()[0] == ASKED, "each refusal to be counted")
    assert recorded()[1] < ASKED, "many of them in one record"


def test_it_charges_the_bound_of_a_call_whose_worker_was_killed(cluster: Cluster) -> None:
    cluster.fake.set(latency_ms=60_000)
    with asking(cluster, "single", "never answered") as worker:
        assert cluster.chat("single", "meanwhile").json()["code"] == "concurrency_limited"
        cluster.service.kill_worker(worker)
    killed_at = time.monotonic()
    cluster.fake.reset()
    assert cluster.chat("single", "too early").status == 429, "the slot is the dead call's until its lease ends"
    wait_until(lambda: cluster.chat("single", "now").status == 200, "the slot to be free", timeout=30)
    assert time.monotonic() - killed_at < LEASE_SECONDS + 5
    cluster.wait_for_records()
    ((status, source, tokens, count),) = cluster.rows(
        "SELECT status, usage_source, input_tokens + output_tokens, count(*) OVER () FROM monitoring_requestrecord "
        "WHERE key_id = %s AND error_code = 'interrupted'",
        cluster.keys["single"][1],
    )
    assert (status, source, count) == (500, "bound", 1)
    assert tokens > 1024, "the prompt, and the longest answer of the tier"
    wait_until(lambda: len(cluster.service.worker_pids()) == WORKERS, "a new worker")


def test_it_answers_the_same_statistics_on_every_worker_and_after_a_restart(cluster: Cluster) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: cluster.chat("busy", f"question {number % 10}"), range(40)))
    assert {answer.status for answer in answers} == {200}
    cluster.wait_for_records()
    expected = cluster.stats("idle")
    assert expected["requests_by_key"] == {"busy": 40}
    assert expected["cache_hits"] + expected["cache_misses"] == expected["total_requests"] == 40
    assert all(cluster.stats("idle") == expected for _ in range(4 * WORKERS))
    env = {name: value for name, value in cluster.service.env.items() if name != "PORT"}
    with aiapi_server(env, workers=1, prepare=False) as restarted:
        again = Cluster(restarted, cluster.fake, cluster.store, cluster.keys, cluster.folder)
        assert again.stats("idle") == expected
        assert again.chat("idle", "question 1").json()["cached"] is True
        again.wait_for_records()
        assert again.stats("busy")["requests_by_key"] == {"busy": 40, "idle": 1}

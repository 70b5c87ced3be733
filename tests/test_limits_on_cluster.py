"""The platform on a Redis Cluster of three masters: exact limits in every shard, every record once, one node lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.cluster import RedisCluster

from inference.fake_provider import FakeUpstream
from tests.load import Ask, volley
from tests.processes import wait_until
from tests.servers import aiapi_server, running_worker
from tests.sites import Site
from tests.stores import Postgres, redis_cluster

ACCOUNTS = 8  # in as many shards, on all nodes
ALLOWED, CLIENTS = 5, 12


@pytest.fixture(scope="module")
def cluster_site(
    prepared: Callable[[], dict[str, str]],
    fake: FakeUpstream,
    postgres: Postgres,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """Run two web workers and a worker on a cluster."""
    log: Path = tmp_path_factory.mktemp("cluster") / "worker.log"
    with redis_cluster() as nodes:
        # Fewer connections than accounts: none may be held by who waits for another's look-up.
        env = {**prepared(), "DATABASE_POOL_SIZE": "2", "REDIS_URL": f"redis+cluster://127.0.0.1:{nodes[0].port}"}
        env["REDIS_TIMEOUT"] = "2"  # a cluster that a busy machine makes slow is not away: budgets would be refused
        with aiapi_server(env, workers=2, prepare=False) as service, running_worker(service.env, log):
            yield Site(service, fake, nodes[0], postgres)


def test_it_holds_limits_and_loses_no_record_in_any_shard(cluster_site: Site) -> None:
    site = cluster_site
    made = site.make(*(({}, {"requests_per_minute_override": ALLOWED}, 1) for _ in range(ACCOUNTS)))
    questions = [
        Ask(site.service.port, owned.key.plain, {"message": f"question {number} of {owned.id}"})
        for number in range(CLIENTS)
        for owned in made
    ]

    async def run() -> list[int]:
        return [(await task).status for task in await volley(questions)]

    statuses = asyncio.run(run())
    for place, owned in enumerate(made):
        assert Counter(statuses[place::ACCOUNTS]) == {200: ALLOWED, 429: CLIENTS - ALLOWED}, owned
    store: Any = RedisCluster("127.0.0.1", site.redis.port)
    ledgers = [replace(site.ledger(owned), store=store) for owned in made]
    for ledger in ledgers:
        wait_until(lambda at=ledger: at.is_ingested(site.service), "the records")  # type: ignore[misc]
        assert ledger.settled.tokens > 0
    nodes = {store.get_node_from_key(ledger.name).port for ledger in ledgers}
    assert len(nodes) == 3, "the accounts live on all nodes"
    usage = site.service.request("GET", "/usage", key=made[0].key.plain).json()
    assert usage["source"] == "limits"
    store.close()

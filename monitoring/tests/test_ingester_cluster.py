"""The ingester on a Redis Cluster: streams on several nodes, each batch taken off in one transaction of its own."""

from __future__ import annotations

import pytest
from pytest_django import Settings

from accounts.limits import get_limits, reset_limits
from accounts.limits.ledgers import LedgerStore
from accounts.limits.scripts import records_stream
from accounts.tests.factories import make_key
from core.redis.client import redis_client
from monitoring.ingester import Backlog, Ingester, ingest_backlog
from monitoring.models import RequestRecord
from monitoring.tests.samples import a_draft, an_operation
from tests.stores import redis_cluster


@pytest.mark.django_db
def test_it_moves_the_records_of_every_node(settings: Settings) -> None:
    with redis_cluster() as nodes:
        settings.REDIS_URL = f"redis+cluster://127.0.0.1:{nodes[0].port}"
        reset_limits()
        issued = make_key()
        for shard in range(8):
            draft = a_draft(issued, account_id=shard)
            get_limits().emit(shard, an_operation(), draft)
        redis_client(settings.REDIS_URL).xadd(records_stream(0), {"nonsense": "x"})
        ingester = Ingester()
        assert ingest_backlog().records == 9
        store = LedgerStore(settings.REDIS_URL)
        assert [record.account_id for shard in range(8) for record in store.waiting(shard)] == list(range(8))
        assert ingester.run_once() == 8
        assert ingester.run_once() == 0
        assert ingest_backlog() == Backlog()
    reset_limits()
    assert set(RequestRecord.objects.values_list("account_id", flat=True)) == set(range(8))

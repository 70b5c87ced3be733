"""The embedded mode beside another process that writes to its database: only who writes waits."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from tests.servers import Service


def test_it_serves_others_while_a_call_waits_for_its_turn_to_write(service: Service) -> None:
    key = service.create_key(account="beside-a-writer", tier="premium", name="first")
    path = service.env["DATABASE_URL"].removeprefix("sqlite:///")
    with ThreadPoolExecutor() as pool, closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        asked = pool.submit(service.request, "POST", "/chat", {"message": "Write this down"}, key=key)
        for _ in range(20):
            assert service.request("GET", "/health/live").status == 200
        assert not asked.done(), "it waits for the writer"
        writer.execute("COMMIT")
        answer = asked.result(60)
    assert answer.status == 200
    record = service.request("GET", f"/requests/{answer.json()['request_id']}", key=key)
    assert record.json()["status"] == 200

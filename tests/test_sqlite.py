"""SQLite beside another process that writes to it: callers are answered, and what is recorded waits."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from tests.servers import Service


def test_it_answers_while_another_process_writes_and_records_the_call_afterwards(service: Service) -> None:
    key = service.create_key(account="beside-a-writer", tier="premium", name="first")
    path = service.env["DATABASE_URL"].removeprefix("sqlite:///")
    with ThreadPoolExecutor() as pool, closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        asked = pool.submit(service.request, "POST", "/chat", {"message": "Write this down"}, key=key)
        for _ in range(20):
            assert service.request("GET", "/health/live").status == 200
        answer = asked.result(60)
        writer.execute("COMMIT")
    assert answer.status == 200
    record = service.request("GET", f"/requests/{answer.json()['request_id']}", key=key)
    assert record.json()["status"] == 200

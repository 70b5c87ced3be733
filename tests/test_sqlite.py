"""One process on SQLite and a Valkey of its own, as `bin/run` starts it: at once, and beside another that writes."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from inference.fake_provider import FakeUpstream
from tests.servers import Service

CALLERS = 6


def test_it_sends_identical_calls_in_flight_once(service: Service, fake: FakeUpstream) -> None:
    key = service.create_key(account="flight", tier="premium", name="first")
    fake.reset()
    fake.set(latency_ms=1000)
    body = {"message": "all at once"}
    with ThreadPoolExecutor(CALLERS) as pool:
        answers = list(pool.map(lambda _: service.request("POST", "/chat", body, key=key), range(CALLERS)))
    fake.reset()
    assert [answer.status for answer in answers] == [200] * CALLERS, answers
    *others, leading = sorted(answer.headers["x-cache"] for answer in answers)
    assert leading == "MISS"
    assert {"COALESCED"} <= set(others) <= {"COALESCED", "HIT"}, "who came when it was over"
    assert {answer.json()["response"] for answer in answers} == {"You said: all at once"}
    costs = sorted(answer.headers["x-cost-usd"] for answer in answers)
    assert costs[:-1] == ["0.000000000"] * (CALLERS - 1)
    assert costs[-1] != "0.000000000"


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

"""Identical requests at the same time cause one call to the provider: with one process, and with several workers."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from inference.fake_provider import FakeUpstream
from tests.servers import Service

CALLERS = 6


@pytest.mark.parametrize("kind", ["service", "full_service"])
def test_it_sends_identical_calls_in_flight_once(request: pytest.FixtureRequest, fake: FakeUpstream, kind: str) -> None:
    service: Service = request.getfixturevalue(kind)
    key = service.create_key(account=f"flight-{kind.replace('_', '-')}", tier="premium", name="first")
    fake.reset()
    fake.set(latency_ms=500)
    try:
        with ThreadPoolExecutor(CALLERS) as pool:
            body = {"message": "all at once"}
            answers = list(pool.map(lambda _: service.request("POST", "/chat", body, key=key), range(CALLERS)))
    finally:
        fake.reset()
    assert [answer.status for answer in answers] == [200] * CALLERS, answers
    *others, leading = sorted(answer.headers["x-cache"] for answer in answers)
    assert leading == "MISS"
    assert {"COALESCED"} <= set(others) <= {"COALESCED", "HIT"}, "who came when it was over"
    assert {json.loads(answer.body)["response"] for answer in answers} == {"You said: all at once"}
    costs = sorted(answer.headers["x-cost-usd"] for answer in answers)
    assert costs[:-1] == ["0.000000000"] * (CALLERS - 1)
    assert costs[-1] != "0.000000000"

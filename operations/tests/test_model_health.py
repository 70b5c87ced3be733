"""The model's part in GET /health: asked for without a token spent, and not too often."""

from __future__ import annotations

import time

import pytest

from inference.catalog import catalog
from inference.fake_provider import FakeUpstream
from inference.models import Model, Provider
from inference.tests.fixtures import MODEL, Api, LogLines
from operations.health import MODEL_SECONDS, Health, llm_health, reachable_routes


def test_it_tells_that_all_is_well(api: Api, upstream: FakeUpstream) -> None:
    answer = api.get("/health", key=None)
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"status", "checks", "response_time_ms"}
    assert body["status"] == "healthy"
    assert body["checks"] == dict.fromkeys(("api", "database", "cache", "limits", "ingest", "llm"), "healthy")
    assert body["response_time_ms"] >= 0


def test_it_spends_no_token(api: Api, upstream: FakeUpstream) -> None:
    for _ in range(3):
        api.get("/health", key=None)
    assert [request.path for request in upstream.requests] == ["/v1/models"]
    assert upstream.billed == []


def test_it_asks_again_after_a_while(upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        assert llm_health() is Health.OK
    later = time.monotonic() + MODEL_SECONDS
    monkeypatch.setattr(reachable_routes, "_clock", lambda: later)
    assert llm_health() is Health.OK
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("fault", ["http_401", "http_500", "reset", "http_429"])
def test_it_is_degraded_when_the_provider_fails(api: Api, upstream: FakeUpstream, fault: str) -> None:
    upstream.set(models_fault=fault)
    answer = api.get("/health", key=None)
    assert (answer.status_code, answer.json()["status"], answer.json()["checks"]["llm"]) == (
        200,
        "degraded",
        "unhealthy",
    )


def test_it_waits_no_longer_than_two_seconds(api: Api, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("operations.health.PROBE_SECONDS", 0.2)
    upstream.set(models_fault="hang")
    answer = api.get("/health", key=None)
    assert answer.json()["checks"]["llm"] == "unhealthy"
    assert answer.json()["response_time_ms"] < 2000


def test_it_is_degraded_without_a_model(api: Api, upstream: FakeUpstream) -> None:
    Model.objects.filter(public_name=MODEL).delete()
    assert api.get("/health", key=None).json()["checks"]["llm"] == "unhealthy"


def test_it_tells_no_exception_and_no_address(api: Api, upstream: FakeUpstream, log_lines: LogLines) -> None:
    upstream.refuse()
    answer = api.get("/health", key=None)
    assert answer.json()["status"] == "degraded"
    assert "127.0.0.1" not in answer.content.decode()
    assert [line["cause"] for line in log_lines() if line["event"] == "upstream_failed"]


def test_it_believes_each_address_by_itself(upstream: FakeUpstream) -> None:
    assert llm_health() is Health.OK
    Provider.objects.update(base_url="http://127.0.0.1:9/v1")
    catalog.forget()
    assert llm_health() is Health.AWAY


def test_it_needs_no_key_and_counts_nothing(api: Api, upstream: FakeUpstream) -> None:
    for path in ("/health", "/health/live", "/health/ready"):
        answer = api.get(path)
        assert answer.status_code == 200
        assert "X-RateLimit-Limit" not in answer.headers
    assert api.chat()["X-RateLimit-Remaining"] == "4"

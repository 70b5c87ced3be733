"""GET /health and its probes: each part away in turn, and nothing of the reason in the answer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test import Client
from pytest_django import Settings

from accounts.limits import reset_limits
from accounts.limits.scripts import records_stream
from accounts.tests.factories import make_key
from core.database import database_outage
from inference.catalog import catalog
from inference.fake_provider import FakeUpstream
from inference.models import Model, Provider
from inference.tests.fixtures import MODEL, Api, LogLines
from launch.environment import free_port
from monitoring.ingester import ingest_backlog
from monitoring.tests.samples import a_draft, an_operation
from operations import health
from operations.health import CHECKS, MODEL_SECONDS, Finding, Health, llm_health, reachable_routes

pytestmark = pytest.mark.django_db
SECRET = "postgresql://aiapi:hunter2@db.internal/aiapi"  # as a driver's message may quote it


@pytest.fixture
def well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model be well unless a test says otherwise."""
    monkeypatch.setitem(CHECKS, "llm", lambda: Finding(Health.OK))


@pytest.fixture
def nobody() -> str:
    """Return the URL of a Redis that does not run."""
    return f"redis://127.0.0.1:{free_port()}/0"


@pytest.fixture
def fresh_limits() -> Iterator[None]:
    """Build the limits anew from the settings of the test, and again after it."""
    reset_limits()
    yield
    reset_limits()


def failing(*args: Any, **kwargs: Any) -> Any:
    """Fail as a driver does."""
    raise OperationalError(SECRET)


def ask(path: str = "/health") -> tuple[int, Any]:
    """Ask without a key and afresh, and check that nothing of a failure's reason is told."""
    health.recent_reports.clear()
    answer = Client().get(path)
    text = answer.content.decode()
    assert not any(word in text for word in ("hunter2", "Error", "refused", "127.0.0.1"))
    return answer.status_code, json.loads(text)


def part(name: str) -> tuple[int, str, str]:
    """Return the status of the answer, the state of the whole, and that of one check."""
    status, report = ask()
    return status, report["status"], report["checks"][name]


@pytest.mark.usefixtures("well")
class TestParts:
    def test_it_is_unhealthy_without_the_database(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(connection, "cursor", failing)
        status, report = ask()
        assert (status, report["status"], report["checks"]["database"]) == (503, "unhealthy", "unhealthy")
        assert report["checks"]["api"] == "healthy"
        assert ask("/health/ready") == (503, {"status": "unhealthy"})
        assert ask("/health/live") == (200, {"status": "healthy"})
        assert database_outage.is_on, "what others need of it they don't wait for"

    def test_it_notices_a_postgresql_without_room_on_its_disk(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL temp_file_limit = 0")  # what it says then is an error like a full disk's
        _, report = ask()
        assert report["checks"]["database"] == "degraded"
        assert report["reasons"]["database"].startswith("The database takes no writes")
        assert not database_outage.is_on, "it can be read"

    @pytest.mark.parametrize(
        "backend",
        ["django_redis.cache.RedisCache", "django.core.cache.backends.dummy.DummyCache"],
        ids=["away", "dumb"],
    )
    def test_it_is_degraded_without_the_cache(self, settings: Settings, nobody: str, backend: str) -> None:
        options = {"OPTIONS": {"SOCKET_CONNECT_TIMEOUT": 0.2}} if "redis" in backend else {}
        settings.CACHES = {**settings.CACHES, "answers": {"BACKEND": backend, "LOCATION": nobody, **options}}
        assert part("cache") == (200, "degraded", "unhealthy")

    @pytest.mark.usefixtures("fresh_limits")
    def test_it_is_degraded_without_the_state_store(self, settings: Settings, nobody: str) -> None:
        settings.REDIS_URL = nobody
        assert part("limits") == (200, "degraded", "degraded")  # they go on in the process
        assert part("ingest") == (200, "degraded", "unhealthy")
        assert ask("/health/ready")[0] == 200

    def test_it_is_degraded_when_records_wait_too_long(self, redis_limits: Any, store: Any) -> None:
        issued = make_key()
        redis_limits.emit(issued.key.account_id, an_operation(), a_draft(issued))
        assert part("ingest")[2] == "healthy"
        old = (redis_limits.now() // 1000) - (health.LAG_SECONDS + 5) * 1000
        store.flushdb()
        store.xadd(records_stream(3), {"o": "x"}, id=f"{old}-0")
        assert part("ingest") == (200, "degraded", "degraded")
        assert health.LAG_SECONDS + 4 <= ingest_backlog().seconds <= health.LAG_SECONDS + 60

    def test_it_says_which_check_failed_in_the_log_only(self, capsys: pytest.CaptureFixture[str]) -> None:
        CHECKS["llm"] = failing
        assert part("llm") == (200, "degraded", "unhealthy")
        logged = capsys.readouterr().err
        assert "health_check_failed" in logged
        assert "OperationalError" in logged
        assert "hunter2" not in logged

    def test_it_runs_the_checks_at_most_once_a_second(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []

        def check() -> Finding:
            asked.append("once")
            return Finding(Health.OK)

        CHECKS["llm"] = check
        for _ in range(5):
            assert Client().get("/health").status_code == 200
        assert len(asked) == 1
        assert Client().get("/health/ready").status_code == 200
        monkeypatch.setattr(connection, "cursor", failing)
        assert Client().get("/health/ready").status_code == 200
        assert ask("/health/ready")[0] == 503

    @pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
    def test_it_answers_with_a_slash_at_the_end_and_takes_no_other_method(self, path: str) -> None:
        assert ask(f"{path}/")[0] == 200
        answer = Client().post(path)
        assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")


class TestModel:
    """The model's part: asked for without a token spent, and not too often."""

    def test_it_is_healthy_when_every_part_is_and_spends_no_token(self, api: Api, upstream: FakeUpstream) -> None:
        for _ in range(3):
            answer = api.get("/health", key=None)
        body = answer.json()
        assert (answer.status_code, set(body)) == (200, {"status", "checks", "response_time_ms"})
        assert body["status"] == "healthy"
        assert body["checks"] == dict.fromkeys(("api", "database", "cache", "limits", "ingest", "llm"), "healthy")
        assert 0 <= body["response_time_ms"] < 10_000
        assert [request.path for request in upstream.requests] == ["/v1/models"]
        assert upstream.billed == []

    def test_it_asks_again_after_a_while_and_of_another_address_at_once(
        self, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for _ in range(2):
            assert llm_health().health is Health.OK
        later = time.monotonic() + MODEL_SECONDS
        monkeypatch.setattr(reachable_routes, "_clock", lambda: later)
        assert llm_health().health is Health.OK
        assert len(upstream.requests) == 2
        Provider.objects.update(base_url="http://127.0.0.1:9/v1")
        catalog.forget()
        assert llm_health().health is Health.AWAY

    @pytest.mark.parametrize("fault", ["http_401", "http_500", "reset", "http_429", "hang", "refused", "no model"])
    def test_it_is_degraded_when_the_provider_fails(
        self, api: Api, upstream: FakeUpstream, log_lines: LogLines, monkeypatch: pytest.MonkeyPatch, fault: str
    ) -> None:
        if fault == "no model":
            Model.objects.filter(public_name=MODEL).delete()
        elif fault == "refused":
            upstream.refuse()
        else:
            monkeypatch.setattr("operations.health.PROBE_SECONDS", 0.2 if fault == "hang" else 2.0)
            upstream.set(models_fault=fault)
        answer = api.get("/health", key=None)
        body = answer.json()
        assert (answer.status_code, body["status"], body["checks"]["llm"]) == (200, "degraded", "unhealthy")
        assert "127.0.0.1" not in answer.content.decode()
        assert fault == "no model" or [line["cause"] for line in log_lines() if line["event"] == "upstream_failed"]
        assert body["response_time_ms"] < 2000 or fault != "hang"

    def test_it_needs_no_key_and_counts_nothing(self, api: Api, upstream: FakeUpstream) -> None:
        for path in ("/health", "/health/live", "/health/ready"):
            answer = api.get(path)
            assert answer.status_code == 200
            assert "X-RateLimit-Limit" not in answer.headers
        assert api.chat()["X-RateLimit-Remaining"] == "4"

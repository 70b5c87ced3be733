"""GET /health and its probes: each part away in turn, and nothing of the reason in the answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test import Client
from pytest_django import Settings

from accounts.limits import reset_limits
from accounts.limits.failover import FailoverBackend
from accounts.limits.redis import records_stream
from accounts.tests.factories import make_key
from core.database import database_outage
from launch.environment import free_port
from monitoring.ingester import ingest_backlog
from monitoring.tests.samples import a_draft, an_operation
from operations import health
from operations.health import CHECKS, Health, health_report

pytestmark = pytest.mark.django_db
SECRET = "postgresql://aiapi:hunter2@db.internal/aiapi"  # as a driver's message may quote it


@pytest.fixture(autouse=True)
def _checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model be well unless a test says otherwise."""
    monkeypatch.setitem(CHECKS, "llm", lambda: Health.OK)


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


@pytest.mark.usefixtures("redis_limits")
def test_it_is_healthy_when_every_part_is() -> None:
    status, report = ask()
    assert status == 200
    assert report["status"] == "healthy"
    assert report["checks"] == dict.fromkeys(("api", "database", "cache", "limits", "ingest", "llm"), "healthy")
    assert 0 <= report["response_time_ms"] < 10_000


def test_it_is_unhealthy_without_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "cursor", failing)
    status, report = ask()
    assert (status, report["status"], report["checks"]["database"]) == (503, "unhealthy", "unhealthy")
    assert report["checks"]["api"] == "healthy"
    assert ask("/health/ready") == (503, {"status": "unhealthy"})
    assert ask("/health/live") == (200, {"status": "healthy"})
    assert database_outage.is_on, "what others need of it they don't wait for"


def test_it_notices_a_postgresql_without_room_on_its_disk(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL temp_file_limit = 0")  # what it says then is an error like a full disk's
    _, report = ask()
    assert report["checks"]["database"] == "degraded"
    assert report["reasons"]["database"].startswith("The database takes no writes")
    assert not database_outage.is_on, "it can be read"


def test_it_is_degraded_without_the_cache(settings: Settings, nobody: str) -> None:
    down = {"BACKEND": "django_redis.cache.RedisCache", "LOCATION": nobody, "OPTIONS": {"SOCKET_CONNECT_TIMEOUT": 0.2}}
    settings.CACHES = {**settings.CACHES, "answers": down}
    assert part("cache") == (200, "degraded", "unhealthy")


def test_it_is_degraded_when_the_cache_forgets_at_once(settings: Settings) -> None:
    settings.CACHES = {**settings.CACHES, "answers": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    assert part("cache") == (200, "degraded", "unhealthy")


@pytest.mark.usefixtures("fresh_limits")
def test_it_is_degraded_without_the_state_store(settings: Settings, nobody: str) -> None:
    settings.REDIS_URL = nobody
    assert part("limits") == (200, "degraded", "degraded")  # they go on in the process
    assert part("ingest") == (200, "degraded", "unhealthy")
    assert ask("/health/ready")[0] == 200


@pytest.mark.parametrize(
    "check", [failing, lambda: Health.AWAY, lambda: Health.DEGRADED], ids=["failing", "away", "degraded"]
)
def test_it_is_degraded_without_the_model(check: Callable[[], Health]) -> None:
    CHECKS["llm"] = check
    status, overall, llm = part("llm")
    assert (status, overall) == (200, "degraded")
    assert llm != "healthy"


def test_it_is_degraded_when_records_wait_too_long(redis_limits: FailoverBackend, store: Any) -> None:
    issued = make_key()
    redis_limits.emit(issued.key.account_id, an_operation(), a_draft(issued))
    assert part("ingest")[2] == "healthy"
    old = (redis_limits.now() // 1000) - (health.LAG_SECONDS + 5) * 1000
    store.flushdb()
    store.xadd(records_stream(3), {"o": "x"}, id=f"{old}-0")
    assert part("ingest") == (200, "degraded", "degraded")
    assert health.LAG_SECONDS + 4 <= ingest_backlog().seconds <= health.LAG_SECONDS + 60


def test_it_says_which_check_failed_in_the_log_only(capsys: pytest.CaptureFixture[str]) -> None:
    CHECKS["llm"] = failing
    health_report()
    logged = capsys.readouterr().err
    assert "health_check_failed" in logged
    assert "OperationalError" in logged
    assert "hunter2" not in logged


@pytest.mark.parametrize("path", ["/health/", "/health/live/", "/health/ready/"])
def test_it_answers_with_a_slash_at_the_end_and_without_a_key(path: str) -> None:
    assert ask(path)[0] == 200


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
def test_it_takes_no_other_method(path: str) -> None:
    answer = Client().post(path)
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")


def part(name: str) -> tuple[int, str, str]:
    """Return the status of the answer, the state of the whole, and that of one check."""
    status, report = ask()
    return status, report["status"], report["checks"][name]


def test_it_runs_the_checks_at_most_once_a_second() -> None:
    asked: list[str] = []

    def check() -> Health:
        asked.append("once")
        return Health.OK

    CHECKS["llm"] = check
    for _ in range(5):
        assert Client().get("/health").status_code == 200
    assert len(asked) == 1


def test_it_probes_the_database_for_readiness_at_most_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Client().get("/health/ready").status_code == 200
    monkeypatch.setattr(connection, "cursor", failing)
    assert Client().get("/health/ready").status_code == 200
    assert ask("/health/ready")[0] == 503

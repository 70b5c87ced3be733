"""GET /metrics: who may read it, and what it shows."""

from __future__ import annotations

import time
from ipaddress import ip_network
from typing import Any

import pytest
from django.conf import LazySettings
from django.test import Client

from accounts.limits.scripts import records_stream
from core.errors import DependencyUnavailable
from core.telemetry import metrics
from monitoring.tests.scraped import samples, value
from operations import scrape as scrape_module
from operations.scrape import metric_names

pytestmark = pytest.mark.django_db
TOKEN = "scrape-me-0123456789"


def scrape(**environ: Any) -> Any:
    """Read the metrics, from loopback where nothing else is said."""
    return Client().get("/metrics", **environ)


def status(address: str = "127.0.0.1", **environ: Any) -> int:
    """Return the status that an address gets."""
    code: int = scrape(REMOTE_ADDR=address, **environ).status_code
    return code


def test_it_is_read_from_loopback_by_default() -> None:
    assert status("127.0.0.1") == status("::1") == status("::ffff:127.0.0.1") == 200
    assert status("192.0.2.1") == status("2001:db8::1") == status("") == 403
    assert status("192.0.2.1", HTTP_AUTHORIZATION="Bearer ") == 403, "no token is set: an empty one is none"
    body = scrape(REMOTE_ADDR="192.0.2.1").json()
    assert (set(body), body["code"]) == ({"detail", "code", "request_id"}, "permission_denied")


def test_it_is_read_with_the_token_from_anywhere(settings: LazySettings) -> None:
    settings.METRICS_TOKEN = TOKEN
    for sent in (f"Bearer {TOKEN}", f"bearer  {TOKEN} "):
        assert status("192.0.2.1", HTTP_AUTHORIZATION=sent) == 200
    for sent in ("", f"Bearer {TOKEN}x", "Bearer ", f"Basic {TOKEN}", TOKEN, "Bearer é"):
        assert status(HTTP_AUTHORIZATION=sent) == 403
    settings.METRICS_NETWORKS = [ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")]
    assert status("10.1.2.3") == status("2001:db8::7") == 200
    assert status("127.0.0.1") == status("11.0.0.1") == 403


def test_it_believes_only_proxies_that_are_trusted(settings: LazySettings) -> None:
    assert status("127.0.0.1", HTTP_X_FORWARDED_FOR="127.0.0.1") == 403, "through a proxy that nobody told us of"
    settings.TRUSTED_PROXIES = 1
    assert status("127.0.0.1", HTTP_X_FORWARDED_FOR="127.0.0.1, 192.0.2.1") == 403
    assert status("10.0.0.1", HTTP_X_FORWARDED_FOR="192.0.2.1, 127.0.0.1") == 200
    assert status("127.0.0.1") == 200
    settings.TRUSTED_PROXIES = 2
    assert status("127.0.0.1", HTTP_X_FORWARDED_FOR="192.0.2.1") == 403, "past the outer of two proxies"
    assert status("127.0.0.1", HTTP_X_FORWARDED_FOR="127.0.0.1, 192.0.2.1") == 200


def test_it_needs_no_key_and_no_known_host_and_is_not_kept() -> None:
    answer = scrape(HTTP_HOST="10.20.30.40:8000", HTTP_ACCEPT="application/openmetrics-text;version=1.0.0,*/*;q=0.1")
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer["Cache-Control"] == "no-store"
    assert answer.content.endswith(b"# EOF\n")


def test_it_names_every_metric_although_nothing_has_happened(settings: LazySettings) -> None:
    text = scrape().content.decode()
    typed = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    assert typed == set(metric_names())
    assert len(metric_names()) > 15
    assert value(text, "aiapi_build_info", version=settings.VERSION) == 1


def test_it_shows_no_breaker_of_a_deployment_that_is_gone_unless_the_database_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> set[str]:
        raise DependencyUnavailable

    metrics.observe_breaker("gone/model", "half_open")
    shown = [sample.labels for sample in samples(scrape().content.decode()) if sample.name == "aiapi_breaker_state"]
    assert {"deployment": "gone/model"} not in shown
    monkeypatch.setattr(scrape_module, "deployment_names", fail)
    assert value(scrape().content.decode(), "aiapi_breaker_state", deployment="gone/model") == 1


def test_it_shows_how_much_waits_for_the_ingester_and_for_how_long(
    redis_limits: Any, store: Any, settings: LazySettings
) -> None:
    old = int((time.time() - 50) * 1000)
    store.xadd(records_stream(3), {"o": "x"}, id=f"{old}-0")
    store.xadd(records_stream(3), {"o": "y"})
    store.xadd(records_stream(9), {"o": "z"})
    text = scrape().content.decode()
    assert value(text, "aiapi_ingest_queue_records") == 3
    assert 50 <= value(text, "aiapi_ingest_lag_seconds") < 110
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    text = scrape().content.decode()
    assert value(text, "aiapi_state_store_up") == 0
    assert not [sample for sample in samples(text) if sample.name.startswith("aiapi_ingest_")]

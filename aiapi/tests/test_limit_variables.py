"""Each environment variable that limits depend on has an effect that a caller can see."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from django.test import Client
from pytest_django import Settings

from accounts.key_cache import build_authenticated_key, key_cache
from accounts.limits import get_limits, reset_limits
from accounts.limits.failover import FailoverBackend
from accounts.limits.types import SECOND, Amount, Bound, Reserved
from accounts.tests.factories import make_key
from accounts.tests.limits_fixtures import DRAFT, an_operation
from inference.tests.fixtures import Api

pytestmark = pytest.mark.django_db
ADDRESS = {"REMOTE_ADDR": "192.0.2.77"}


def test_it_limits_bad_keys_by_failed_key_rate(api: Api, settings: Settings) -> None:
    settings.FAILED_KEY_RATE = "2/d"
    statuses = [api.get("/usage", key="ak_dev_bad", **ADDRESS).status_code for _ in range(4)]
    assert statuses == [401, 401, 429, 429]
    assert api.get("/usage", **ADDRESS).status_code == 200


def test_it_limits_log_ins_by_admin_login_rate(settings: Settings) -> None:
    settings.ADMIN_LOGIN_RATE = "2/d"
    client = Client(REMOTE_ADDR="192.0.2.78")
    attempt = {"username": "root", "password": "guess"}
    statuses = [client.post("/admin/login/", attempt).status_code for _ in range(4)]
    assert statuses == [200, 200, 429, 429]
    assert client.get("/admin/login/").status_code == 200
    assert Client(REMOTE_ADDR="192.0.2.79").post("/admin/login/", attempt).status_code == 200


def test_it_counts_addresses_behind_trusted_proxies(api: Api, settings: Settings) -> None:
    key = make_key(allowed_ips=["203.0.113.7"]).plain
    sent = {"X-Forwarded-For": "203.0.113.7"}
    assert api.get("/usage", key=key, headers=sent).status_code == 403
    settings.TRUSTED_PROXIES = 1
    assert api.get("/usage", key=key, headers=sent).status_code == 200
    assert api.get("/usage", key=key, headers={"X-Forwarded-For": "203.0.113.7, 198.51.100.1"}).status_code == 403


def test_it_accepts_the_keys_of_every_pepper(api: Api, settings: Settings) -> None:
    first, second = "a" * 40, "b" * 40
    settings.API_KEY_PEPPERS = [second, *settings.API_KEY_PEPPERS]
    assert api.get("/usage").status_code == 200
    settings.API_KEY_PEPPERS = [first]
    key_cache.forget()
    assert api.get("/usage").status_code == 401


def test_it_frees_what_a_dead_call_holds_after_limits_lease_seconds(api: Api, settings: Settings) -> None:
    settings.LIMITS_LEASE_SECONDS = 7
    reset_limits()
    limits = get_limits()
    scope = build_authenticated_key(api.key.key, datetime.now(UTC)).limits
    at = limits.now()
    bound = Bound(Amount(5, 5))
    granted = limits.reserve(scope, an_operation(), admitted_at=at, bound=bound, draft=DRAFT)
    assert isinstance(granted, Reserved)
    assert 6 * SECOND < granted.lease_until - at < 8 * SECOND


@pytest.fixture
def silent_redis(settings: Settings) -> Iterator[None]:
    """Let the limits live in a Redis that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        settings.REDIS_URL = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        yield
        limits = get_limits()
        assert isinstance(limits, FailoverBackend)
        limits.store.is_away = False  # its mender ends
        reset_limits()


@pytest.mark.parametrize(("seconds", "least", "most"), [(0.25, 0.2, 0.9), (1.5, 1.4, 2.5)])
def test_it_waits_for_redis_no_longer_than_redis_timeout(
    api: Api, settings: Settings, silent_redis: None, seconds: float, least: float, most: float
) -> None:
    settings.REDIS_TIMEOUT = seconds
    reset_limits()
    began = time.monotonic()
    assert api.get("/usage").json()["source"] == "records"
    assert least < time.monotonic() - began < most

"""Failed attempts are counted in a Redis, for which nobody waits twice when it does not answer."""

from __future__ import annotations

import pytest
from django.conf import LazySettings
from django.core.cache import caches
from django.test import Client
from django_redis import get_redis_connection

from core.env import cache_settings
from tests.silent import Silent

WAIT = 0.2  # seconds
BAD_KEYS = 5

pytestmark = pytest.mark.django_db


def keep_attempts_in(url: str, settings: LazySettings) -> None:
    """Count attempts in a Redis."""
    settings.CACHES = {**settings.CACHES, "attempts": cache_settings(url, ttl=60, timeout=WAIT)["attempts"]}
    settings.RATELIMIT_USE_CACHE = "attempts"


def send_bad_keys() -> list[int]:
    """Send bad keys, and list the statuses."""
    return [Client().get("/usage", headers={"X-API-Key": f"wrong-{n}"}).status_code for n in range(BAD_KEYS)]


def test_it_lets_one_bad_key_wait_and_no_others(
    silent: Silent, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.redis.availability.PROBE_INTERVAL", 60.0)
    keep_attempts_in(silent.redis_url, settings)
    assert send_bad_keys() == [401] * BAD_KEYS
    assert silent.calls() == 2, "a command and a probe"


def test_it_counts_in_redis(redis_url: str, settings: LazySettings) -> None:
    keep_attempts_in(redis_url, settings)
    settings.FAILED_KEY_RATE = "3/d"
    caches["attempts"].clear()
    assert send_bad_keys() == [401, 401, 401, 429, 429]


def test_it_counts_nothing_while_redis_is_away(redis_url: str, settings: LazySettings) -> None:
    keep_attempts_in(redis_url, settings)
    cache, availability = caches["attempts"], get_redis_connection("attempts").server.availability
    cache.clear()
    availability.is_away = True
    assert not cache.add("a", 1)
    availability.is_away = False
    assert cache.add("a", 1)
    assert cache.incr("a") == 2
    assert cache.get("a") == 2
    with pytest.raises(ValueError, match="not found"):
        cache.incr("b")


def test_it_limits_log_ins_by_admin_login_rate(settings: LazySettings) -> None:
    settings.ADMIN_LOGIN_RATE = "2/d"
    client = Client(REMOTE_ADDR="192.0.2.78")
    attempt = {"username": "root", "password": "guess"}
    statuses = [client.post("/admin/login/", attempt).status_code for _ in range(4)]
    assert statuses == [200, 200, 429, 429]
    assert client.get("/admin/login/").status_code == 200
    assert Client(REMOTE_ADDR="192.0.2.79").post("/admin/login/", attempt).status_code == 200

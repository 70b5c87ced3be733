"""Failed attempts are counted in a Redis of which nobody waits twice that it does not answer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.conf import LazySettings
from django.core.cache import caches
from django.test import Client

from accounts import authentication
from core.env import cache_settings
from core.outage import Outage
from tests.silent import Silent, silent_server

WAIT = 0.2  # seconds
BAD_KEYS = 5

pytestmark = pytest.mark.django_db


@pytest.fixture
def silent() -> Iterator[Silent]:
    """Run a Redis that never answers."""
    with silent_server() as server:
        yield server


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
    keep_attempts_in(silent.redis_url, settings)
    monkeypatch.setitem(authentication.outages, silent.redis_url, Outage(lambda: 0.0))
    assert send_bad_keys() == [401] * BAD_KEYS
    assert silent.calls() == 1


def test_it_counts_in_redis(redis_url: str, settings: LazySettings) -> None:
    keep_attempts_in(redis_url, settings)
    settings.FAILED_KEY_RATE = "3/d"
    caches["attempts"].clear()
    assert send_bad_keys() == [401, 401, 401, 429, 429]


def test_it_asks_again_after_a_second(redis_url: str, settings: LazySettings, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_attempts_in(redis_url, settings)
    seconds = [0.0]
    monkeypatch.setitem(authentication.outages, redis_url, outage := Outage(lambda: seconds[0]))
    outage.failed()
    cache = caches["attempts"]
    cache.clear()
    assert cache.add("a", 1) is None
    seconds[0] += 1
    assert cache.add("a", 1)
    assert cache.incr("a") == 2
    assert cache.get("a") == 2
    with pytest.raises(ValueError, match="not found"):
        cache.incr("b")
    assert not outage.is_on

"""Failed attempts are counted in a Redis of which nobody waits twice that it does not answer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
from django.conf import LazySettings
from django.core.cache import caches
from django.test import Client

from accounts import attempts
from accounts.outage import Outage
from aiapi.stores import cache_settings

WAIT = 0.2  # seconds
BAD_KEYS = 5

pytestmark = pytest.mark.django_db


@pytest.fixture
def paused() -> Iterator[socket.socket]:
    """Run a Redis that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def url_of(server: socket.socket) -> str:
    """Return its URL."""
    return f"redis://127.0.0.1:{server.getsockname()[1]}/0"


def connections(server: socket.socket) -> int:
    """Count who has called."""
    with suppress(BlockingIOError):
        server.accept()[0].close()
        return 1 + connections(server)
    return 0


def keep_attempts_in(url: str, settings: LazySettings) -> None:
    """Count attempts in a Redis."""
    settings.CACHES = {**settings.CACHES, "attempts": cache_settings(url, ttl=60, timeout=WAIT)["attempts"]}
    settings.RATELIMIT_USE_CACHE = "attempts"


def send_bad_keys() -> list[int]:
    """Send bad keys, and list the statuses."""
    return [Client().get("/usage", headers={"X-API-Key": f"wrong-{n}"}).status_code for n in range(BAD_KEYS)]


def test_it_lets_one_bad_key_wait_and_no_others(
    paused: socket.socket, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_attempts_in(url_of(paused), settings)
    monkeypatch.setitem(attempts.outages, url_of(paused), Outage(lambda: 0.0))
    assert send_bad_keys() == [401] * BAD_KEYS
    assert connections(paused) == 1


def test_it_counts_in_redis(redis_url: str, settings: LazySettings) -> None:
    keep_attempts_in(redis_url, settings)
    settings.FAILED_KEY_RATE = "3/d"
    caches["attempts"].clear()
    assert send_bad_keys() == [401, 401, 401, 429, 429]


def test_it_asks_again_after_a_second(redis_url: str, settings: LazySettings, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_attempts_in(redis_url, settings)
    seconds = [0.0]
    monkeypatch.setitem(attempts.outages, redis_url, outage := Outage(lambda: seconds[0]))
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

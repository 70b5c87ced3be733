"""Cached answers in the stores that the settings make: over Redis, for their time, and while Redis is down or hangs."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest
from django.conf import LazySettings
from django.core.cache import caches
from django_redis import get_redis_connection

from accounts.limits import get_limits, reset_limits
from accounts.tests.factories import make_key
from core.env import cache_settings
from inference import cache
from inference.cache import CachedAnswer, answer_key
from inference.fake_provider import FakeUpstream
from inference.tests.fixtures import PROMPT, Api, LogLines, Records
from launch.environment import free_port
from tests.processes import wait_until
from tests.silent import Silent
from tests.stores import Redis

ANSWER = CachedAnswer({"choices": [{"message": {"content": "text"}}]}, 5, "openai/m")


def set_cache(settings: LazySettings, url: str, *, ttl: int = 3600) -> None:
    """Keep answers elsewhere."""
    settings.CACHES = cache_settings(url, ttl=ttl, timeout=settings.REDIS_TIMEOUT)


def test_it_forgets_answers_after_their_time(api: Api, upstream: FakeUpstream, settings: LazySettings) -> None:
    set_cache(settings, settings.CACHE_URL, ttl=1)
    assert [api.chat()["X-Cache"] for _ in range(2)] == ["MISS", "HIT"]
    deadline = time.monotonic() + 5
    while api.of(make_key(account=api.key.key.account)).chat()["X-Cache"] == "HIT":
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_it_works_over_redis(api: Api, upstream: FakeUpstream, settings: LazySettings, redis_url: str) -> None:
    set_cache(settings, redis_url)
    caches["answers"].clear()
    key = answer_key(1, endpoint="chat", model="m", payload={"text": PROMPT})
    cache.store(key, ANSWER)
    assert cache.look_up(key) == ANSWER
    answers: Any = caches["answers"]
    assert 0 < answers.ttl(key) <= 3600
    assert [api.chat()["X-Cache"] for _ in range(2)] == ["MISS", "HIT"]


def test_it_goes_on_without_its_redis(
    api: Api, upstream: FakeUpstream, settings: LazySettings, log_lines: LogLines, records: Records
) -> None:
    set_cache(settings, f"redis://127.0.0.1:{free_port()}/0")
    began = time.monotonic()
    assert [api.chat()["X-Cache"] for _ in range(3)] == ["MISS"] * 3
    assert time.monotonic() - began < 1
    assert {line["event"] for line in log_lines()} >= {"cache_failed"}
    assert [record.status for record in records()] == [200, 200, 200]


def test_it_lets_no_request_wait_for_a_cache_that_is_away(
    silent: Silent, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.redis.availability.PROBE_INTERVAL", 0.1)
    set_cache(settings, silent.redis_url)
    assert cache.look_up("key") is None
    assert silent.calls() == 2, "a command and a probe"
    began, asked, probes = time.monotonic(), 0, 0
    while asked < 200 or (probes < 2 and time.monotonic() - began < 20):
        cache.look_up("key")
        cache.store("key", ANSWER)
        asked += 1
        if asked == 200:
            assert time.monotonic() - began < 5, "without a wait"
        elif asked > 200:
            time.sleep(0.01)
            probes += silent.calls()
    assert probes > 1, "it is asked whether it is back beside them"


def test_it_believes_the_limits_that_their_redis_is_away(
    silent: Silent, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.redis.availability.PROBE_INTERVAL", 60.0)
    settings.REDIS_URL = silent.redis_url
    set_cache(settings, settings.REDIS_URL.replace("/0", "/1"))
    reset_limits()
    assert get_limits().now()
    assert silent.calls() == 2
    assert cache.look_up("key") is None
    assert silent.calls() == 0
    reset_limits()


def test_it_loses_a_fraction_of_a_second_to_a_redis_that_hangs_and_comes_back_by_itself(
    api: Api, upstream: FakeUpstream, settings: LazySettings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.redis.availability.PROBE_INTERVAL", 0.2)
    set_cache(settings, redis.url)
    caches["answers"].clear()
    redis.process.send_signal(signal.SIGSTOP)
    spent = []
    try:
        for _ in range(4):
            began = time.monotonic()
            assert api.chat()["X-Cache"] == "MISS"
            spent.append(time.monotonic() - began)
    finally:
        redis.process.send_signal(signal.SIGCONT)
    assert spent[0] < settings.REDIS_TIMEOUT + 0.75
    assert min(spent[1:]) < settings.REDIS_TIMEOUT  # left alone; on a busy machine not each of them is quick
    server = get_redis_connection("answers").server
    wait_until(lambda: not server.availability.is_away, "the cache to be used again", timeout=5)
    assert [api.of(make_key(account=api.key.key.account)).chat()["X-Cache"] for _ in range(2)] == ["MISS", "HIT"]

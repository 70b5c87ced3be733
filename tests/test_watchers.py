"""Workers as processes: all ingest, whatever hangs; of two that see different things one counts.

It sees what a server alone knows.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.environment import free_port
from operations.tests.webhooks import Hook, webhook
from tests.manager import manager
from tests.processes import wait_until
from tests.running import Reply, Served, chat, completion, running_platform, scripted_provider
from tests.servers import SECRETS, aiapi_server, clean_environment, running_worker
from tests.stores import Redis

#: More looks than end an incident (operations.alerts.conditions); each takes longer than a round.
MANY = 6
TAKEN_OVER = 40.0  # seconds
#: Seconds after which a record must be readable.
READABLE = 2.0


@pytest.fixture
def hook() -> Iterator[Hook]:
    """Run a webhook that alerts go to."""
    with webhook() as made:
        yield made


@pytest.fixture
def env(prepared: Callable[[], dict[str, str]], own_redis: Redis, hook: Hook) -> dict[str, str]:
    """Return the settings of a platform on PostgreSQL and Redis whose leading worker looks every second."""
    own = {"REDIS_URL": own_redis.url, "ALERT_WEBHOOK_URL": hook.url, "WATCH_SECONDS": "1"}
    return {**clean_environment(), **SECRETS, **prepared(), **own}


def once(env: dict[str, str]) -> str:
    """Run `manage.py worker --once watch` and return what it says."""
    status, output, errors = manager().run(env, "worker", "--once", "watch")
    assert status == 0, errors
    return output


def test_it_ends_no_incident_of_another_worker(env: dict[str, str], hook: Hook, tmp_path: Path) -> None:
    blind, seeing = tmp_path / "blind.log", tmp_path / "seeing.log"
    without_cache = {**env, "CACHE_URL": f"redis://127.0.0.1:{free_port()}/0"}
    with running_worker(without_cache, blind) as first:
        wait_until(lambda: bool(hook.got), "an alert")
        with running_worker(env, seeing):
            wait_until(lambda: "worker_stands_by" in seeing.read_text(), "the second to stand by")
            for _ in range(MANY):
                assert once(env).startswith("Another worker leads. 0 alerts began")
            assert [(each["event"], each["subject"]) for each in hook.posted] == [("began", "health:cache")]
            os.kill(first.pid, signal.SIGKILL)
            wait_until(lambda: len(hook.got) > 1, "the second to take over", TAKEN_OVER)
            assert "worker_leads" in seeing.read_text()
        assert once(without_cache).startswith("1 alerts began")  # the second let another lead
    told = [(each["event"], each["id"]) for each in hook.posted]
    assert [event for event, _ in told] == ["began", "ended", "began"]
    assert told[0][1] == told[1][1] != told[2][1]
    assert hook.posted[1]["lasted_seconds"] > 0


def test_it_tells_of_a_breaker_that_a_server_has_open(hook: Hook) -> None:
    nobody = f"http://127.0.0.1:{free_port()}/v1"
    with aiapi_server({"OPENAI_BASE_URL": nobody, "OPENAI_API_KEY": "sk", "ALERT_WEBHOOK_URL": hook.url}) as service:
        key = service.create_key(account="acme", tier="premium", name="first")
        assert service.request("POST", "/chat", {"message": "hello"}, key=key).status == 502
        assert service.request("POST", "/chat", {"message": "hello"}, key=key).status == 503
        told: dict[str, str] = {}

        def is_told() -> bool:
            service.manage("worker", "--once", "watch")
            told.update({each["subject"]: each["title"] for each in hook.posted})
            return "breaker:1" in told

        wait_until(is_told, "a probe to fail as well, and an alert")
    assert told["breaker:1"].startswith("openai is down for ")


def test_it_ingests_while_a_webhook_and_a_provider_hang() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, scripted_provider() as provider:  # nobody reads of `silent`
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        provider.listing = Reply(delay=60)
        provider.script("m", completion("Hello"))
        hanging = {"OPENAI_BASE_URL": provider.base_url, "ALERT_WEBHOOK_URL": url, "WATCH_SECONDS": "1"}
        with running_platform(hanging, [Served("m", [provider.base_url])]) as platform:
            wait_until(lambda: provider.listings > 0, "the worker to ask the provider")
            waited: list[float] = []
            before = platform.log.count("alert_not_delivered")
            while platform.log.count("alert_not_delivered") == before:  # until the webhook was waited for once more
                assert platform.ask("/v1/chat/completions", chat("m", str(len(waited)))).status == 200
                answered = time.monotonic()
                while platform.ask("/stats").json()["total_requests"] <= len(waited):
                    assert time.monotonic() < answered + 60
                waited.append(time.monotonic() - answered)
            assert max(waited) < READABLE

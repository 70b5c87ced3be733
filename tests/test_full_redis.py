"""A small Redis for everything: what accounts have answered never fills it, and one that is full says so."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from inference.fake_provider import FakeUpstream
from tests.catalogue import Served, set_up
from tests.processes import wait_until
from tests.servers import Answer, Service, aiapi_server, redis_server

MEMORY = 8 * 2**20
#: Inputs whose embeddings are half a megabyte of an answer.
MODEL, INPUTS = "text-embedding-3-small", 800
#: Accounts, each with a key that no limit stops.
ACCOUNTS = 17
MAKE_KEYS = f"""
import json
from accounts.tests.factories import make_key, make_tier
tier = make_tier("free-of-limits", requests_per_minute=None)
print(json.dumps([make_key(tier=tier).plain for _ in range({ACCOUNTS})]))
"""


@dataclass(frozen=True)
class Small:
    """The platform on a Redis of MEMORY bytes, and a client of that."""

    service: Service
    redis: Any
    keys: list[str]

    @property
    def used(self) -> float:
        """Return the share of its memory that is in use."""
        return float(self.redis.info("memory")["used_memory"]) / MEMORY

    def chat(self, key: str) -> Answer:
        """Ask something new."""
        return self.service.request("POST", "/chat", {"message": uuid.uuid4().hex}, key=key)

    def embed(self, key: str, name: object, **headers: str) -> Answer:
        """Ask for half a megabyte."""
        body = {"model": MODEL, "input": [f"{name}-{number}" for number in range(INPUTS)]}
        answer = self.service.request("POST", "/v1/embeddings", body, key=key, headers=headers)
        assert len(answer.body) > 400_000, answer.body[:200]
        return answer


@pytest.fixture(scope="module")
def small(prepared: Callable[[], dict[str, str]], fake: FakeUpstream) -> Iterator[Small]:
    """Run it."""
    bound = ("--maxmemory", str(MEMORY))
    with (
        redis_server(options=bound) as server,
        redis_server(options=(*bound, "--maxmemory-policy", "allkeys-lru")) as cache,
    ):
        client: Any = redis.Redis.from_url(server.url)
        stores = {"REDIS_URL": server.url, "CACHE_URL": cache.url}
        with aiapi_server({**prepared(), **stores}, prepare=False) as service:
            set_up(service, [Served(MODEL, [fake.base_url], kind="embedding")])
            yield Small(service, client, json.loads(service.manage("shell", "-c", MAKE_KEYS).splitlines()[-1]))
        client.close()


def test_it_serves_others_whatever_one_has_cached(small: Small) -> None:
    flood, other = small.keys[0], small.keys[1]
    for number in range(19):
        assert small.embed(flood, number).status == 200
        assert small.used < 0.6
    assert small.embed(flood, 18).headers["x-cache"] == "HIT", "its newest answers are cached"
    assert small.chat(other).status == 200


def test_it_serves_others_whatever_many_have_kept_under_idempotency_keys(small: Small) -> None:
    headers = {"Idempotency-Key": "first", "Cache-Control": "no-store"}
    keys = small.keys[2:16]
    for key in keys:
        assert small.embed(key, "kept", **headers).status == 200
        assert small.used < 0.8
    for key in (keys[0], keys[-1]):
        assert small.embed(key, "kept", **headers).headers.get("idempotency-replayed") == "true"
    assert small.chat(keys[0]).status == 200


def test_it_tells_of_a_redis_that_takes_no_writes(small: Small) -> None:
    key = small.keys[16]
    assert small.chat(key).status == 200
    small.redis.config_set("maxmemory", 1)
    try:
        refused = small.chat(key)
        assert (refused.status, refused.json()["code"]) == (503, "dependency_unavailable")
        wait_until(lambda: health(small)["status"] == "unhealthy", "/health to tell", timeout=5)
        told = health(small)
        assert told["checks"]["limits"] == "unhealthy"
        assert told["reasons"]["limits"].startswith("The state store takes no writes: its memory is full (maxmemory).")
        assert "its memory is full" in small.service.manage("doctor")
    finally:
        small.redis.config_set("maxmemory", MEMORY)
    wait_until(lambda: small.chat(key).status == 200, "calls to be served", timeout=5)
    wait_until(lambda: "limits" not in health(small).get("reasons", {}), "/health to be well", timeout=5)


def health(small: Small) -> Any:
    """Ask how it is."""
    return small.service.request("GET", "/health").json()

"""The state store (Redis or Valkey): one for all parts of a process, and clients for what needs its own connections."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import redis
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from core.background import PerProcess, Start
from core.env import REDIS_OPTIONS
from core.redis.availability import Availability
from core.redis.cluster import ClusterClient, ClusterWire
from core.redis.wire import (
    CONNECT_TIMEOUT,
    LEAST_TIMEOUT,
    PROBE_PART,
    READ_TIMEOUT,
    Argument,
    Call,
    DirectWire,
    Script,
    Wire,
)

CLUSTER_SCHEMES = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
MOST_CONNECTIONS = 10_000  # more than a process's concurrent requests; redis-py's default of 100 would make calls fail

REDIS_PORT = 6379


def same_server(url: str, other: str) -> bool:
    """Return whether two URLs name the same Redis server."""
    return server_of(url) == server_of(other)


@lru_cache(maxsize=8)
def server_of(url: str) -> tuple[str | None, int | str]:
    """Return a server's host and port, or the path of its socket."""
    parts = urlsplit(url)
    return (None, parts.path) if parts.scheme == "unix" else (parts.hostname, parts.port or REDIS_PORT)


def redis_client(
    url: str, *, connect_timeout: float = CONNECT_TIMEOUT, read_timeout: float = READ_TIMEOUT
) -> redis.Redis | ClusterClient:
    """Return a client without automatic retries, for a redis-py URL or `redis+cluster://host:port`.

    The client connects when it is first used, and raises RedisError then if Redis is unavailable. Timeouts in seconds.
    """
    options: dict[str, Any] = {
        **REDIS_OPTIONS,
        "socket_connect_timeout": connect_timeout,
        "socket_timeout": read_timeout,
        "max_connections": MOST_CONNECTIONS,
    }
    scheme = urlsplit(url).scheme
    if scheme in CLUSTER_SCHEMES:
        return ClusterClient(url.replace(scheme, CLUSTER_SCHEMES[scheme], 1), options)
    return redis.Redis.from_url(url, **options)


def wire_for(client: redis.Redis | ClusterClient) -> Wire:
    """Return the wire for a client's Redis or cluster."""
    if isinstance(client, ClusterClient):
        return ClusterWire(client.url, client.options)
    return DirectWire(client.connection_pool)


class StateStore(Availability):
    """The state store as this process knows it: the wire to it, and its availability."""

    def __init__(self, wire: Wire, *, start: Start | None = None) -> None:
        super().__init__(wire.ping, start=start)
        self.wire = wire

    def call(self, script: Script, prefix: str, arguments: Sequence[Argument]) -> Any:
        """Run an idempotent script on the shard of a prefix. Raises RedisError as `ask` does."""
        return self.ask(self.wire.call, script, prefix, arguments)

    def call_each(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        """Run an idempotent script for each prefix with its arguments, in one round trip a node."""
        return self.ask(self.wire.call_each, script, calls)


def reset_state_store() -> None:
    """Close the state store; the next `state_store` makes one from the current settings."""
    store = _store.drop()
    if store is not None:
        store.end()
        store.wire.close()


def _build() -> StateStore:
    if not settings.REDIS_URL:
        raise ImproperlyConfigured("REDIS_URL is not set, and limits are kept there")
    # A call without a reply is followed by a probe: together they may take REDIS_TIMEOUT.
    read_timeout = max(settings.REDIS_TIMEOUT / (1 + PROBE_PART), LEAST_TIMEOUT)
    connect_timeout = max(read_timeout / 2, CONNECT_TIMEOUT)
    return StateStore(
        wire_for(redis_client(settings.REDIS_URL, connect_timeout=connect_timeout, read_timeout=read_timeout))
    )


_store = PerProcess(_build)
#: Return the state store of this process; a fork has its own. Raises ImproperlyConfigured without REDIS_URL.
state_store = _store.get

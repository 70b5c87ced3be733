"""Clients and script connections for the state store (Redis or Valkey), chosen by its URL."""

from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.redis.cluster import ClusterClient, ClusterWire
from core.redis.wire import CONNECT_TIMEOUT, READ_TIMEOUT, DirectWire, Wire

CLUSTER_SCHEMES = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
MOST_CONNECTIONS = 10_000  # more than a process's concurrent requests; redis-py's default of 100 would make calls fail


def redis_client(
    url: str, *, connect_timeout: float = CONNECT_TIMEOUT, read_timeout: float = READ_TIMEOUT
) -> redis.Redis | ClusterClient:
    """Return a client without automatic retries, for a redis-py URL or `redis+cluster://host:port`.

    The client connects when it is first used, and raises RedisError then if Redis is unavailable. Timeouts in seconds.
    """
    options: dict[str, Any] = {
        "socket_connect_timeout": connect_timeout,
        "socket_timeout": read_timeout,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # has no HELLO, so that a new connection needs no round trip
        "driver_info": None,
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

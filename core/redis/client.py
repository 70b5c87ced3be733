"""The clients of the state Redis, by its URL."""

from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from core.redis.cluster import ClusterClient, ClusterWire
from core.redis.wire import CONNECT_TIMEOUT, READ_TIMEOUT, DirectWire, Wire

CLUSTER_SCHEMES = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
MOST_CONNECTIONS = 10_000  # more than a process has requests: redis-py's 100 would refuse calls to a Redis that is well


def redis_client(
    url: str, *, connect_timeout: float = CONNECT_TIMEOUT, read_timeout: float = READ_TIMEOUT
) -> redis.Redis | ClusterClient:
    """Make a client that never retries by itself, for a URL as redis-py takes it, or `redis+cluster://host:port`.

    It connects when it is used; raises RedisError then if Redis is away.
    """
    options: dict[str, Any] = {
        "socket_connect_timeout": connect_timeout,
        "socket_timeout": read_timeout,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # needs no greeting: a new connection costs no round trip
        "driver_info": None,
        "max_connections": MOST_CONNECTIONS,
    }
    scheme = urlsplit(url).scheme
    if scheme in CLUSTER_SCHEMES:
        return ClusterClient(url.replace(scheme, CLUSTER_SCHEMES[scheme], 1), options)
    return redis.Redis.from_url(url, **options)


def wire_for(client: redis.Redis | ClusterClient) -> Wire:
    """Give the wire that fits a client."""
    if isinstance(client, ClusterClient):
        return ClusterWire(client.url, client.options)
    return DirectWire(client.connection_pool)

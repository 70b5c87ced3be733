"""How scripts reach Redis: short timeouts, no retries behind our back, as few Python steps as redis-py allows.

redis-py by default repeats a command up to ten times, which would run a script again when only its reply was lost, and
asks each connection whether it is readable whenever it leaves the pool. Here a connection that went stale in the pool
is replaced once (every script is idempotent by its operation id), and anything else is the caller's to judge.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisClusterException, SlotNotCoveredError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from accounts.limits.scripts import Script

CONNECT_TIMEOUT = 0.1  # seconds; with the read and the probe after it, a call waits for a dead Redis at most 250 ms
READ_TIMEOUT = 0.2
PROBE_TIMEOUT = 0.05
IDLE_CONNECTIONS = 128
CLUSTER_SCHEMES = {"redis+cluster": "redis", "rediss+cluster": "rediss"}

Argument = str | int | bytes
Call = tuple[str, Sequence[Argument]]


def redis_client(
    url: str, *, connect_timeout: float = CONNECT_TIMEOUT, read_timeout: float = READ_TIMEOUT
) -> "redis.Redis | RedisCluster":
    """Make a client that never retries by itself, for a URL as redis-py takes it, or `redis+cluster://host:port`."""
    options: dict[str, Any] = {
        "socket_connect_timeout": connect_timeout,
        "socket_timeout": read_timeout,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,  # needs no greeting: a new connection costs no round trip
        "driver_info": None,
    }
    scheme = urlsplit(url).scheme
    if scheme in CLUSTER_SCHEMES:
        plain = url.replace(scheme, CLUSTER_SCHEMES[scheme], 1)
        return RedisCluster.from_url(plain, **options)
    return redis.Redis.from_url(url, **options)


class Wire(Protocol):
    """Runs scripts. Raises redis.RedisError; of those, ConnectionError and TimeoutError leave the outcome open."""

    def call(self, script: Script, prefix: str, arguments: Sequence[Argument]) -> Any:
        """Run a script on the shard of the prefix, its only key; answer what it returns, with bytes for strings."""

    def call_each(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        """Run a script for each prefix with its arguments, in order; where it can, in one round trip."""

    def ping(self) -> None:
        """Raise unless Redis answers within PROBE_TIMEOUT, over a connection of its own."""

    def close(self) -> None:
        """Close all connections."""


class DirectWire:
    """Runs scripts on one Redis, over connections of its own that are handed out last in, first out."""

    def __init__(self, client: "redis.Redis") -> None:
        self._pool = client.connection_pool
        self._idle: deque[Any] = deque(maxlen=IDLE_CONNECTIONS)
        self._pid = os.getpid()

    def call(self, script: Script, prefix: str, arguments: Sequence[Argument]) -> Any:
        """Run a script by its name, or by its source if Redis has not seen it yet."""
        try:
            return self._command(b"EVALSHA", script.sha, 1, prefix, *arguments)
        except NoScriptError:
            return self._command(b"EVAL", script.source, 1, prefix, *arguments)

    def call_each(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        """Run a script many times, in one round trip after the first, which makes Redis know it."""
        if not calls:
            return []
        (prefix, arguments), *rest = calls
        first = self.call(script, prefix, arguments)
        return [first, *self._commands([("EVALSHA", script.sha, 1, prefix, *each) for prefix, each in rest])]

    def ping(self) -> None:
        """Raise unless Redis answers."""
        options = self._pool.connection_kwargs
        probe = self._pool.connection_class(
            **{**options, "socket_timeout": PROBE_TIMEOUT, "socket_connect_timeout": PROBE_TIMEOUT}
        )
        try:
            probe.send_command("PING")
            probe.read_response()
        finally:
            probe.disconnect()

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().disconnect()

    def _command(self, *command: Argument) -> Any:
        connection = self._take()
        if connection is not None:
            try:
                return self._exchange(connection, command)
            except RedisTimeoutError:
                raise
            except RedisConnectionError:
                self.close()  # it went stale in the pool, as others may have: once more, on a fresh one
        return self._exchange(self._pool.connection_class(**self._pool.connection_kwargs), command)

    def _commands(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        if not commands:
            return []
        connection = self._take() or self._pool.connection_class(**self._pool.connection_kwargs)
        healthy = False
        try:
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            answers = [connection.read_response() for _ in commands]
            healthy = True
        finally:
            self._give_back(connection, healthy=healthy)
        return answers

    def _take(self) -> Any:
        if self._pid != os.getpid():
            self._idle = deque(maxlen=IDLE_CONNECTIONS)  # the parent's sockets: not ours to use or to shut down
            self._pid = os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _exchange(self, connection: Any, command: Sequence[Argument]) -> Any:
        healthy = False
        try:
            connection.send_command(*command, check_health=False)
            answer = connection.read_response()
            healthy = True
        except redis.ResponseError:
            healthy = True  # an answer, if an unwelcome one
            raise
        finally:
            self._give_back(connection, healthy=healthy)
        return answer

    def _give_back(self, connection: Any, *, healthy: bool) -> None:
        if healthy and len(self._idle) < IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            connection.disconnect()


class ClusterWire:
    """Runs scripts on a Redis Cluster: each on the node that has the prefix's slot."""

    def __init__(self, client: RedisCluster) -> None:
        self._client: Any = client  # redis-py's cluster client is not typed

    def call(self, script: Script, prefix: str, arguments: Sequence[Argument]) -> Any:
        """Run a script by its name, or by its source if that node has not seen it yet."""
        with _cluster_errors():
            try:
                return self._client.execute_command("EVALSHA", script.sha, 1, prefix, *arguments)
            except NoScriptError:
                return self._client.execute_command("EVAL", script.source, 1, prefix, *arguments)

    def call_each(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        """Run a script many times, one after the other: redis-py pipelines no scripts on a cluster."""
        return [self.call(script, prefix, arguments) for prefix, arguments in calls]

    def ping(self) -> None:
        """Raise unless every primary answers: an account lives on one of them, and none may be missing."""
        with _cluster_errors():
            for node in self._client.get_primaries():
                self._client.execute_command("PING", target_nodes=node)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()


@contextmanager
def _cluster_errors() -> Iterator[None]:
    """Raise what redis-py raises for a cluster that is away as what it is: its classes are no RedisError there."""
    try:
        yield
    except (RedisClusterException, SlotNotCoveredError) as error:
        raise RedisConnectionError("the cluster is away") from error


def wire_for(client: "redis.Redis | RedisCluster") -> Wire:
    """Give the wire that fits a client."""
    return ClusterWire(client) if isinstance(client, RedisCluster) else DirectWire(client)

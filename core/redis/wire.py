"""Running scripts on Redis with short timeouts, no automatic retries and little Python overhead.

By default, redis-py repeats a command up to ten times, which would run a script again if only its reply was lost. Here
all errors go to the caller; core.redis.availability repeats a call, since every script is idempotent by its operation
id.

In a process that is busy for longer than a timeout, timers expire before it reads its sockets. That is not a failure of
Redis: a probe's reply that has arrived by then is read, and a connection attempt that took far longer than its timeout
is repeated once.
"""

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

import hiredis
import redis
from redis.exceptions import NoScriptError
from redis.exceptions import TimeoutError as RedisTimeoutError

from core.redis.connection import SharedConnection, is_possible

CONNECT_TIMEOUT = 0.1  # seconds; with the read and the probe, a call waits at most 250 ms for a dead Redis
READ_TIMEOUT = 0.2
LEAST_TIMEOUT = 0.05
#: A probe may take this part of the time-out of a reply to connect, and to answer: 50 ms of 200.
PROBE_PART = 0.25
STALLED = 1.5  # times the timeout: a longer wait means that this process was busy


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script's source, and its SHA-1 (hex digits), by which Redis caches it."""

    source: bytes
    sha: bytes


def script(source: bytes) -> Script:
    """Return a script with its digest."""
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


Argument = str | int | bytes
Call = tuple[str, Sequence[Argument]]


class Wire(Protocol):
    """Runs scripts. Raises RedisError; after its subclasses ConnectionError and TimeoutError the outcome is unknown."""

    def call(self, script: Script, prefix: str, arguments: Sequence[Argument]) -> Any:
        """Run a script on the shard of the prefix, its only key, and return its result (strings as bytes)."""

    def call_each(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        """Run a script for each prefix with its arguments, in one round trip if possible; return the results."""

    def one_a_node(self, prefixes: Sequence[str]) -> Collection[str]:
        """Return one of the prefixes for each node."""

    def ping(self) -> None:
        """Raise RedisError unless Redis answers within a quarter of the usual time on a new connection."""

    def close(self) -> None:
        """Close all connections."""


class DirectWire:
    """Runs scripts on one Redis server: over one connection that greenlets share, else over redis-py's pool.

    Many commands in one round trip use a connection of the pool in either case: others would wait behind them.
    """

    def __init__(self, pool: redis.ConnectionPool) -> None:
        self._pool: Any = pool
        self._shared = SharedConnection(self._connected)
        self._pid = os.getpid()

    def call(self, script: Script, prefix: str, arguments: Sequence[Argument]) -> Any:
        """Run a script by its digest, or by its source if Redis hasn't cached it."""
        try:
            return self.command(b"EVALSHA", script.sha, 1, prefix, *arguments)
        except NoScriptError:
            return self.command(b"EVAL", script.source, 1, prefix, *arguments)

    def call_asking(self, script: Script, prefix: str, arguments: Sequence[Argument]) -> Any:
        """Run a script on a cluster node to which the prefix's slot is being moved."""
        return self._exchange((b"ASKING",), (b"EVAL", script.source, 1, prefix, *arguments))[1]

    def call_each(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        """Run a script many times: once, so that Redis caches it, then all others in one round trip."""
        if not calls:
            return []
        (prefix, arguments), *rest = calls
        first = self.call(script, prefix, arguments)
        return [first, *self._exchange(*((b"EVALSHA", script.sha, 1, prefix, *each) for prefix, each in rest))]

    def one_a_node(self, prefixes: Sequence[str]) -> Collection[str]:
        """Return the first prefix, because all are on one node."""
        return prefixes[:1]

    def ping(self) -> None:
        """Raise RedisError unless Redis answers."""
        self.probe(b"PING")

    def probe(self, *command: Argument) -> Any:
        """Return the reply to a command within PROBE_PART of the usual time, on a new connection.

        A reply that has arrived by the time-out is read: this process may have been too busy to look.
        """
        usual = self._pool.connection_kwargs.get("socket_timeout", READ_TIMEOUT)
        seconds = max(PROBE_PART * usual, LEAST_TIMEOUT)
        probe = self._connected(socket_timeout=seconds, socket_connect_timeout=seconds)
        try:
            probe.send_command(*command)
            try:
                return probe.read_response(disconnect_on_error=False)
            except RedisTimeoutError:
                if not probe.can_read(0):
                    raise
                return probe.read_response()
        finally:
            probe.disconnect()

    def close(self) -> None:
        """Close the connections."""
        self._shared.close()
        self._pool.disconnect()

    def command(self, *command: Argument) -> Any:
        """Run a command and return its reply."""
        if not is_possible():
            return self._exchange(command)[0]
        if self._pid != os.getpid():  # close the parent's connection, without shutting it down for the parent
            self._pid = os.getpid()
            self._shared.close()
        packed: bytes = hiredis.pack_command(tuple(command))  # type: ignore[arg-type]  # its stub lacks the ellipsis
        return self._shared.command(packed)

    def _exchange(self, *commands: Sequence[Argument]) -> list[Any]:
        """Run commands in one round trip, over a connection of the pool, which replaces those that went stale."""
        if not commands:
            return []
        connection = self._pool.get_connection()
        try:
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            return [connection.read_response() for _ in commands]
        except BaseException:  # an error may leave replies unread
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)

    def _connected(self, **options: float) -> Any:
        """Make a connection; try a second time if the first timed out because this process was busy."""
        connection = self._pool.connection_class(**{**self._pool.connection_kwargs, **options})
        began = monotonic()
        try:
            connection.connect()
        except RedisTimeoutError:
            if monotonic() - began < STALLED * connection.socket_connect_timeout:
                raise
            connection.connect()
        return connection

"""Running scripts on Redis with short timeouts, no automatic retries and little Python overhead.

By default, redis-py repeats a command up to ten times, which would run a script again if only its reply was lost, and
checks every connection that it takes from the pool. Here, a connection that went stale in the pool is replaced once
(every script is idempotent by its operation id), and all other errors go to the caller.

In a process that is busy for longer than a timeout, timers expire before it reads its sockets. That is not a failure of
Redis: a reply that has arrived by then is read, and a connection attempt that took far longer than its timeout is
repeated once.
"""

import hashlib
import os
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Protocol

import hiredis
import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError
from redis.exceptions import TimeoutError as RedisTimeoutError

from core.redis.connection import SharedConnection, is_possible

CONNECT_TIMEOUT = 0.1  # seconds; with the read and the probe, a call waits at most 250 ms for a dead Redis
READ_TIMEOUT = 0.2
#: A probe may take this part of the time-out of a reply: 50 ms of 200.
PROBE_PART = 0.25
IDLE_CONNECTIONS = 128
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
    """Runs scripts on one Redis server: over one connection that greenlets share, else over a pool, last in, first out.

    Many commands in one round trip use a connection of the pool in either case: others would wait behind them.
    """

    def __init__(self, pool: redis.ConnectionPool) -> None:
        self._pool: Any = pool  # for its connection class and options only
        self._idle: deque[Any] = deque(maxlen=IDLE_CONNECTIONS)
        self._shared = SharedConnection(self._fresh)
        self._pid = os.getpid()

    def call(self, script: Script, prefix: str, arguments: Sequence[Argument]) -> Any:
        """Run a script by its digest, or by its source if Redis hasn't cached it."""
        try:
            return self.command(b"EVALSHA", script.sha, 1, prefix, *arguments)
        except NoScriptError:
            return self.command(b"EVAL", script.source, 1, prefix, *arguments)

    def call_asking(self, script: Script, prefix: str, arguments: Sequence[Argument]) -> Any:
        """Run a script on a cluster node to which the prefix's slot is being moved."""
        return self._commands([(b"ASKING",), (b"EVAL", script.source, 1, prefix, *arguments)])[1]

    def call_each(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        """Run a script many times: once, so that Redis caches it, then all others in one round trip."""
        if not calls:
            return []
        (prefix, arguments), *rest = calls
        first = self.call(script, prefix, arguments)
        return [first, *self._commands([("EVALSHA", script.sha, 1, prefix, *each) for prefix, each in rest])]

    def one_a_node(self, prefixes: Sequence[str]) -> Collection[str]:
        """Return the first prefix, because all are on one node."""
        return prefixes[:1]

    def ping(self) -> None:
        """Raise RedisError unless Redis answers."""
        self.probe(b"PING")

    def probe(self, *command: Argument) -> Any:
        """Return the reply to a command within PROBE_PART of the usual time, on a new connection."""
        options = self._pool.connection_kwargs
        seconds = PROBE_PART * options.get("socket_timeout", READ_TIMEOUT)
        probe = self._pool.connection_class(**{**options, "socket_timeout": seconds, "socket_connect_timeout": seconds})
        try:
            _connect(probe)
            probe.send_command(*command)
            return _answer(probe)
        finally:
            probe.disconnect()

    def close(self) -> None:
        """Close the shared connection and the idle ones."""
        self._shared.close()
        self._close_idle()

    def command(self, *command: Argument) -> Any:
        """Run a command and return its reply."""
        if is_possible():
            self._drop_inherited()
            packed: bytes = hiredis.pack_command(tuple(command))  # type: ignore[arg-type]  # its stub lacks the ellipsis
            return self._shared.command(packed)
        connection = self._take()
        if connection is not None:
            try:
                return self._exchange(connection, command)
            except RedisTimeoutError:
                raise
            except RedisConnectionError:
                self._close_idle()  # stale, as other idle ones may be: repeat the command on a new connection
        return self._exchange(self._fresh(), command)

    def _commands(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        if not commands:
            return []
        connection = self._take() or self._fresh()
        healthy = False
        try:
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            answers = [_answer(connection) for _ in commands]
            healthy = True
        finally:
            self._give_back(connection, healthy=healthy)
        return answers

    def _take(self) -> Any:
        self._drop_inherited()
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _drop_inherited(self) -> None:
        """Close connections inherited from a parent process, without shutting them down for the parent."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self.close()

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().disconnect()

    def _fresh(self) -> Any:
        connection = self._pool.connection_class(**self._pool.connection_kwargs)
        _connect(connection)
        return connection

    def _exchange(self, connection: Any, command: Sequence[Argument]) -> Any:
        healthy = False
        try:
            connection.send_command(*command, check_health=False)
            answer = _answer(connection)
            healthy = True
        except redis.ResponseError:
            healthy = True  # an error reply leaves the connection usable
            raise
        finally:
            self._give_back(connection, healthy=healthy)
        return answer

    def _give_back(self, connection: Any, *, healthy: bool) -> None:
        if healthy and len(self._idle) < IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            connection.disconnect()


def _connect(connection: Any) -> None:
    """Connect; try a second time if the first timed out because this process was busy."""
    began = monotonic()
    try:
        connection.connect()
    except RedisTimeoutError:
        if monotonic() - began < STALLED * connection.socket_connect_timeout:
            raise
        connection.connect()


def _answer(connection: Any) -> Any:
    """Read a reply, even after a timeout if it has arrived while this process was busy."""
    try:
        return connection.read_response(disconnect_on_error=False)
    except RedisTimeoutError:
        if not connection.can_read(0):
            raise
        return connection.read_response()

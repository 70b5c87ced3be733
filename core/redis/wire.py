"""How scripts reach Redis: short timeouts, no retries behind our back, as few Python steps as redis-py allows.

redis-py by default repeats a command up to ten times, which would run a script again when only its reply was lost, and
asks each connection whether it is readable whenever it leaves the pool. Here a connection that went stale in the pool
is replaced once (every script is idempotent by its operation id), and anything else is the caller's to judge.

A process that is busy for longer than a time-out finds its timers run out before it looks at its sockets. That is no
fault of Redis's, so a reply that has come by then is read, and a connection that took far longer than its time-out is
tried once more.
"""

import os
from collections import deque
from collections.abc import Collection, Sequence
from time import monotonic
from typing import Any, Protocol

import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError
from redis.exceptions import TimeoutError as RedisTimeoutError

from core.redis.scripts import Script

CONNECT_TIMEOUT = 0.1  # seconds; with the read and the probe after it, a call waits for a dead Redis at most 250 ms
READ_TIMEOUT = 0.2
PROBE_TIMEOUT = 0.05
IDLE_CONNECTIONS = 128
STALLED = 1.5  # times a time-out: a wait that took so long was this process's own

Argument = str | int | bytes
Call = tuple[str, Sequence[Argument]]


class Wire(Protocol):
    """Runs scripts. Raises redis.RedisError; of those, ConnectionError and TimeoutError leave the outcome open."""

    def call(self, script: Script, prefix: str, arguments: Sequence[Argument]) -> Any:
        """Run a script on the shard of the prefix, its only key; answer what it returns, with bytes for strings."""

    def call_each(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        """Run a script for each prefix with its arguments, in order; where it can, in one round trip."""

    def one_a_node(self, prefixes: Sequence[str]) -> Collection[str]:
        """Give, of shards' prefixes, one of each node."""

    def ping(self) -> None:
        """Raise unless Redis answers within PROBE_TIMEOUT, over a connection of its own."""

    def close(self) -> None:
        """Close all connections."""


class DirectWire:
    """Runs scripts on one Redis, over connections of its own that are handed out last in, first out."""

    def __init__(self, pool: redis.ConnectionPool) -> None:
        self._pool: Any = pool  # for what it says of connections: it makes none
        self._idle: deque[Any] = deque(maxlen=IDLE_CONNECTIONS)
        self._pid = os.getpid()

    def call(self, script: Script, prefix: str, arguments: Sequence[Argument]) -> Any:
        """Run a script by its name, or by its source if Redis has not seen it yet."""
        try:
            return self.command(b"EVALSHA", script.sha, 1, prefix, *arguments)
        except NoScriptError:
            return self.command(b"EVAL", script.source, 1, prefix, *arguments)

    def call_asking(self, script: Script, prefix: str, arguments: Sequence[Argument]) -> Any:
        """Run a script on a node of a cluster that is taking the prefix's slot over."""
        return self._commands([(b"ASKING",), (b"EVAL", script.source, 1, prefix, *arguments)])[1]

    def call_each(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        """Run a script many times, in one round trip after the first, which makes Redis know it."""
        if not calls:
            return []
        (prefix, arguments), *rest = calls
        first = self.call(script, prefix, arguments)
        return [first, *self._commands([("EVALSHA", script.sha, 1, prefix, *each) for prefix, each in rest])]

    def one_a_node(self, prefixes: Sequence[str]) -> Collection[str]:
        """Give the first: all are on one node."""
        return prefixes[:1]

    def ping(self) -> None:
        """Raise unless Redis answers."""
        self.probe(b"PING")

    def probe(self, *command: Argument) -> Any:
        """Give the answer to a command, within PROBE_TIMEOUT, over a connection of its own."""
        options = self._pool.connection_kwargs
        probe = self._pool.connection_class(
            **{**options, "socket_timeout": PROBE_TIMEOUT, "socket_connect_timeout": PROBE_TIMEOUT}
        )
        try:
            _connect(probe)
            probe.send_command(*command)
            return _answer(probe)
        finally:
            probe.disconnect()

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().disconnect()

    def command(self, *command: Argument) -> Any:
        """Give the answer to a command."""
        connection = self._take()
        if connection is not None:
            try:
                return self._exchange(connection, command)
            except RedisTimeoutError:
                raise
            except RedisConnectionError:
                self.close()  # it went stale in the pool, as others may have: once more, on a fresh one
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
        if self._pid != os.getpid():
            self._idle = deque(maxlen=IDLE_CONNECTIONS)  # the parent's sockets: not ours to use or to shut down
            self._pid = os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _fresh(self) -> Any:
        """Make a connection, and connect it."""
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


def _connect(connection: Any) -> None:
    """Connect; once more where it was this process that took so long."""
    began = monotonic()
    try:
        connection.connect()
    except RedisTimeoutError:
        if monotonic() - began < STALLED * connection.socket_connect_timeout:
            raise
        connection.connect()


def _answer(connection: Any) -> Any:
    """Read a reply, also one that came in time while this process was busy with other things until that was over."""
    try:
        return connection.read_response(disconnect_on_error=False)
    except RedisTimeoutError:
        if not connection.can_read(0):
            raise
        return connection.read_response()

"""One connection to the store that all greenlets of a process share.

Commands of concurrent callers are written together, once a turn of gevent's loop, and replies are matched in order: the
switches and system calls around a command cost more than the command.

- A caller that is killed leaves its place in the order: the late reply is read and dropped.
- A connection that breaks fails every command in flight with ConnectionError: whether they ran is unknown. The next
  command connects anew; callers that come meanwhile wait for the same attempt, and share its failure.
- A store that is silent for the connection's time-out fails all that is in flight with TimeoutError. One that goes on
  answering is only slow: a command behind many others waits for its turn. A process that was itself busy for longer
  reads what came meanwhile before it gives up.

redis-py connects (TLS, authentication, database), hiredis frames the replies. Only for the main thread of a process
whose sockets gevent has patched: see `is_possible`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import hiredis
from gevent import get_hub, monkey, spawn
from gevent.hub import Waiter
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

READ_SIZE = 65536
#: Seconds between two looks at whether the store is silent.
LOOK_SECONDS = 0.02


def is_possible() -> bool:
    """Return whether greenlets can share a connection here."""
    return bool(monkey.is_module_patched("socket") and get_hub().main_hub)


class SharedConnection:
    """A connection for commands of any number of greenlets; `connect` makes and connects one of redis-py's."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._link: _Link | None = None
        self._waiting: list[Waiter[_Link | RedisError]] | None = None  # for the caller that connects now

    def command(self, packed: bytes) -> Any:
        """Send a packed command and return its reply, over a new connection if the one in use breaks.

        Raises RedisError: of those, TimeoutError and ConnectionError leave open whether it ran.
        """
        reply: Any = None
        link = self._link
        if link is not None:
            reply = link.exchange(packed)
        if link is None or (isinstance(reply, RedisConnectionError) and not isinstance(reply, RedisTimeoutError)):
            reply = self._connected().exchange(packed)
        if isinstance(reply, RedisError):
            raise reply
        return reply

    def close(self) -> None:
        """Close the connection; what is in flight fails."""
        if self._link is not None:
            self._link.fail(RedisConnectionError("the connection was closed"))

    def _connected(self) -> _Link:
        """Connect, or wait for the caller that does; raise the RedisError that came of it."""
        if self._link is not None and self._link.is_usable:  # another caller has connected meanwhile
            return self._link
        if self._waiting is not None:
            waiter: Waiter[_Link | RedisError] = Waiter()
            self._waiting.append(waiter)
            return _link(waiter.get())
        waiting: list[Waiter[_Link | RedisError]] = []
        self._waiting = waiting
        outcome: _Link | RedisError = RedisConnectionError("connecting was broken off")
        try:
            self._link = outcome = _Link(self._connect())
        except RedisError as error:
            outcome = error
        finally:
            self._waiting = None
            for each in waiting:
                get_hub().loop.run_callback(each.switch, outcome)
        return _link(outcome)


def _link(outcome: _Link | RedisError) -> _Link:
    if isinstance(outcome, RedisError):
        raise outcome
    return outcome


class _Link:
    """A connected socket, with the callers that wait for replies on it, in the order of their commands."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._socket = connection._sock
        self._socket.settimeout(None)  # `_watch` bounds the wait
        self._hub = get_hub()
        self._silence = connection.socket_timeout - 2 * LOOK_SECONDS
        self._unsent: list[bytes] = []
        self._waiting: deque[Waiter[Any]] = deque()
        self._idle_writer: Waiter[None] | None = None
        self._timer = self._hub.loop.timer(LOOK_SECONDS, LOOK_SECONDS)
        self._is_watched = self._is_suspect = False
        self._heard_at = 0.0
        self.is_usable = True
        spawn(self._write)
        spawn(self._read)

    def exchange(self, packed: bytes) -> Any:
        """Send a command; return its reply, or the error that ended the wait."""
        if not self.is_usable:  # it broke after the caller got hold of it
            return RedisConnectionError("the connection is closed")
        waiter: Waiter[Any] = Waiter(self._hub)
        if not self._waiting:
            self._heard_at = monotonic()
            if not self._is_watched:
                self._is_watched = True
                self._timer.start(self._watch)
        self._waiting.append(waiter)
        self._unsent.append(packed)
        self._wake_writer()
        return waiter.get()

    def fail(self, error: RedisError) -> None:
        """Close the socket, and fail all waiting callers."""
        if not self.is_usable:
            return
        self.is_usable = False
        self._timer.close()
        with suppress(OSError):
            self._connection.disconnect()
        waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            self._hub.loop.run_callback(waiter.switch, error)
        self._wake_writer()

    def _wake_writer(self) -> None:
        if self._idle_writer is not None:
            self._hub.loop.run_callback(self._idle_writer.switch, None)
            self._idle_writer = None

    def _watch(self) -> None:
        """Fail if the store was silent for too long at two looks in a row.

        At the first, its reply may be waiting: the event loop runs timers before it reads sockets.
        """
        if not self._waiting:
            self._timer.stop()
            self._is_watched = False
        elif monotonic() - self._heard_at < self._silence:
            self._is_suspect = False
        elif not self._is_suspect:
            self._is_suspect = True
        else:
            self.fail(RedisTimeoutError("the store did not answer in time"))

    def _write(self) -> None:
        """Write what callers have left, all of it at once, until the connection breaks."""
        error = RedisConnectionError("writing was broken off")
        try:
            while self.is_usable:
                if not self._unsent:
                    self._idle_writer = Waiter(self._hub)
                    self._idle_writer.get()
                    continue
                data = b"".join(self._unsent)
                self._unsent.clear()
                try:
                    sent = self._socket.send(data, 0, 0.0)  # `sendall` costs twice as much
                except BlockingIOError:
                    sent = 0
                if sent < len(data):
                    self._socket.sendall(data[sent:])
        except OSError as broken:
            error = RedisConnectionError(f"writing failed: {type(broken).__name__}")
        finally:
            self.fail(error)

    def _read(self) -> None:
        """Hand replies to the waiting callers, in order, until the connection breaks."""
        reader = hiredis.Reader(protocolError=InvalidResponse, replyError=self._connection._parser.parse_error)
        run_callback = self._hub.loop.run_callback
        error: RedisError = RedisConnectionError("the store closed the connection")
        try:
            while data := self._socket.recv(READ_SIZE):
                self._heard_at = monotonic()
                reader.feed(data)
                while (reply := reader.gets()) is not False:
                    run_callback(self._waiting.popleft().switch, reply)  # a switch from here would strand this reader
        except OSError as broken:
            error = RedisConnectionError(f"reading failed: {type(broken).__name__}")
        except RedisError as garbled:
            error = garbled
        finally:
            self.fail(error)

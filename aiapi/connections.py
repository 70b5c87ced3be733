"""The connections of a worker: how long each may take to send a request, and which ones go when there are too many.

A connection takes a place whether or not it ever sends a request, and needs no key for it. So everything that a client
sends has a deadline, an address has only a part of the places for connections without a whole header, and when nearly
all places are taken, the connection that has waited longest goes. No request costs a timer: once a second the worker
looks whose deadline is over.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import gevent
import gevent.pool
import gevent.server
import gevent.socket
import structlog
from gunicorn.http.errors import ParseException

#: Seconds in which a new connection has to send its first byte.
FIRST_BYTE_SECONDS = 5.0
#: Seconds from the first byte of a request to the end of its header.
HEADER_SECONDS = 5.0
#: Seconds for a whole body, and the bytes of it that add a second more.
BODY_SECONDS, BYTES_A_SECOND = 10.0, 16 * 1024
#: Seconds for what the application leaves of a body: a client that is cut off while it sends loses the answer.
LEFT_BODY_SECONDS = 30.0
LEFT_BODY_STEP = 256 * 1024
#: An address has a quarter of all places for connections without a whole header; a twentieth of all is kept free.
STRANGERS, FREE = 4, 20
#: Seconds after which a request that waits for its client may be ended, when no place is left without that.
STALLED_SECONDS = 5.0
#: Seconds between two lines in the log about connections that had to go.
LOG_SECONDS = 60.0

log = structlog.get_logger(__name__)


class Connection(gevent.socket.socket):  # type: ignore[misc]  # gevent has no types
    """A client's connection, with a deadline for what it is to send next."""

    timeout: float | None
    crowd: Crowd
    #: Where it comes from, as far as addresses are counted.
    origin: bytes
    #: Whether it has not sent a whole header yet.
    is_stranger: bool
    #: gunicorn's request that is being answered, when it began, and whether anything of its answer is written.
    request: Any
    began_at: float
    is_answered: bool
    #: Whether nothing of the next request has come.
    is_idle: bool
    #: When it is too late for what is to come next, and by how much each byte moves that.
    deadline: float
    seconds_a_byte: float

    def await_request(self, seconds: float) -> None:
        """Expect another request within so many seconds."""
        self.request, self.is_idle = None, True
        self.deadline, self.seconds_a_byte = monotonic() + seconds, 0.0
        self.crowd.waiting[self] = None

    def begin(self, request: Any) -> None:
        """Take it that a whole header has come, and expect the body."""
        self.crowd.waiting.pop(self, None)
        if self.is_stranger:
            self.crowd.welcome(self)
        self.request, self.began_at, self.is_answered = request, monotonic(), False
        self.deadline, self.seconds_a_byte = self.began_at + BODY_SECONDS, 1 / BYTES_A_SECOND

    def take_rest(self) -> bool:
        """Take what the application left of the body; False if it does not come whole and in time."""
        body = self.request.body
        if getattr(body.reader, "length", None) == 0:  # nothing is left on its way, as nearly always
            return True
        self.deadline, self.seconds_a_byte = monotonic() + LEFT_BODY_SECONDS, 0.0
        self.crowd.waiting[self] = None
        try:
            while body.read(LEFT_BODY_STEP):
                gevent.sleep(0)  # others have their turn, however fast it comes
        except (OSError, ParseException):
            return False
        return True

    def announce_close(self) -> None:
        """Say `Connection: close` in the answer that is being made, unless its head is written."""
        if self.request is not None and not self.is_answered:
            self.request.force_close()

    def recv(self, *args: Any) -> bytes:
        """Receive bytes before the deadline.

        After it there are none, as if the client had closed the connection: then gunicorn closes it too, and writes
        nothing. Within a body raises TimeoutError instead.
        """
        if self.request is not None:
            return self._recv_body(*args)
        try:
            data: bytes = super().recv(*args)
        except TimeoutError:
            data = self._last_look(*args) if self.is_idle else b""
        if self.is_idle:
            self.is_idle, self.deadline = False, monotonic() + HEADER_SECONDS
            self.crowd.waiting[self] = None  # where it is already, unless it has just been let go
        return data

    def _last_look(self, *args: Any) -> bytes:
        """Return what has come: a request may be there although its greenlet has not run yet."""
        self.timeout = 0.0
        try:
            return super().recv(*args)  # type: ignore[no-any-return]
        except BlockingIOError:
            return b""
        finally:
            self.timeout = None

    def _recv_body(self, *args: Any) -> bytes:
        self.crowd.stalled[self] = self.began_at
        try:
            data: bytes = super().recv(*args)
        except TimeoutError:
            self.request.force_close()
            raise
        finally:
            self.crowd.stalled.pop(self, None)
        self.deadline += len(data) * self.seconds_a_byte
        return data

    def sendall(self, data: bytes, flags: int = 0) -> None:
        """Send bytes, and wait until the client takes them."""
        self.is_answered = True
        try:
            sent = self.send(data, flags, 0.0)
        except BlockingIOError:
            sent = 0
        if sent == len(data):
            return
        self.crowd.stalled[self] = monotonic()
        try:
            super().sendall(memoryview(data)[sent:], flags)
        finally:
            self.crowd.stalled.pop(self, None)

    def stop_reading(self) -> None:
        """End the wait for bytes of this client, if it waits."""
        self.hub.cancel_wait(self._read_event, TimeoutError("the client took too long, or others needed its place"))

    def stop_writing(self) -> None:
        """End the wait for this client to take bytes, if it waits: as if it had left."""
        self.hub.cancel_wait(self._write_event, BrokenPipeError(errno.EPIPE, "others needed the place of this client"))


class Crowd(gevent.pool.Pool):  # type: ignore[misc]  # gevent has no types
    """The greenlets of a worker's connections; `bounds_addresses` is off where all come from proxies."""

    def __init__(self, size: int, *, bounds_addresses: bool) -> None:
        super().__init__(size)
        self.connections: set[Connection] = set()
        #: Connections without a whole header, or between two requests; the first has waited longest.
        self.waiting: dict[Connection, None] = {}
        #: Connections whose request waits for its client to send the body or to take the answer, and since when.
        self.stalled: dict[Connection, float] = {}
        self._most_strangers = size // STRANGERS if bounds_addresses else size
        self._strangers: dict[bytes, dict[Connection, None]] = {}
        self._logged_at = -LOG_SECONDS

    def enter(self, connection: Connection, address: Any) -> None:
        """Take a new connection; the oldest without a header goes if its address has too many of them."""
        connection.crowd, connection.origin, connection.is_stranger = self, _origin(address), True
        self.connections.add(connection)
        strangers = self._strangers.setdefault(connection.origin, {})
        strangers[connection] = None
        if len(strangers) > self._most_strangers:
            self._let_go(next(iter(strangers)), "address")

    def welcome(self, connection: Connection) -> None:
        """Count a connection no more among those without a whole header."""
        connection.is_stranger = False
        strangers = self._strangers[connection.origin]
        del strangers[connection]
        if not strangers:
            del self._strangers[connection.origin]

    def leave(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.discard(connection)
        self.waiting.pop(connection, None)
        if connection.is_stranger:
            self.welcome(connection)

    def end_overdue(self) -> None:
        """End each wait for bytes whose deadline is over."""
        now = monotonic()
        for connection in [connection for connection in self.connections if connection.deadline < now]:
            connection.stop_reading()

    def full(self) -> bool:
        """Return whether there is no place. Asked before a connection is accepted: so it makes room for the next."""
        if self.free_count() <= self.size // FREE and (oldest := self._oldest()) is not None:
            self._let_go(oldest, "places")
        return bool(super().full())

    def _oldest(self) -> Connection | None:
        """Find the connection that has waited longest; requests that run are no choice unless their client stalls."""
        if self.waiting:
            return next(iter(self.waiting))
        until = monotonic() - STALLED_SECONDS
        return next((connection for connection, since in self.stalled.items() if since < until), None)

    def _let_go(self, connection: Connection, cause: str) -> None:
        self.waiting.pop(connection, None)
        self.stalled.pop(connection, None)
        if connection.is_stranger:
            self.welcome(connection)  # it has not left yet, and must not be found again
        connection.stop_reading()
        connection.stop_writing()
        if monotonic() - self._logged_at >= LOG_SECONDS:
            self._logged_at = monotonic()
            log.warning("connections_let_go", cause=cause, connections=len(self.connections))


class Listener(gevent.server.StreamServer):  # type: ignore[misc]  # gevent has no types
    """A listening socket whose connections have deadlines."""

    def __init__(self, listener: Any, handle: Callable[..., None], crowd: Crowd, *, max_accept: int) -> None:
        super().__init__(listener, handle=handle, spawn=crowd)
        self.max_accept = max_accept

    def do_read(self) -> tuple[Connection, Any] | None:
        """Accept a connection, if there is one."""
        try:
            descriptor, address = self.socket._accept()
        except BlockingIOError:
            return None
        return Connection(self.socket.family, self.socket.type, self.socket.proto, fileno=descriptor), address

    def drain(self, seconds: float) -> None:
        """Let no new connection begin, and accept all that have: closed with some in its queue, it would reset them.

        The socket is one for all workers of a server, and takes nothing for any of them after this.
        """
        _refuse_new(self.socket)
        gevent.sleep(seconds)  # while handshakes end that have begun
        while accepted := self.do_read():
            self.do_handle(*accepted)


def _origin(address: Any) -> bytes:
    """Return what stands for a client's address: of IPv6 the /64, which is what one client has."""
    host = address[0] if isinstance(address, tuple) else ""
    if ":" not in host:
        return str(host).encode()
    packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return packed if packed.startswith(b"\0" * 10) else packed[:8]  # the first are IPv4 addresses, and loopback


#: Classic BPF for a TCP segment: drop it if of SYN and ACK it has SYN alone (what opens a connection), else take all.
_DROP_SYN = [(0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF)]
_SO_ATTACH_FILTER = 26


def _refuse_new(listening: Any) -> None:
    """Have the kernel drop what would open a connection (Linux): the client sends it again, to a port that is closed.

    Between the last accept and the close a connection could slip into the queue otherwise, to be reset with it.
    """
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _DROP_SYN))
    if listening.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):  # no Linux: what slips in is reset
            program = struct.pack("HL", len(_DROP_SYN), ctypes.addressof(code))
            listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

"""Client connections of a worker: deadlines for requests, and limits on the number of connections.

A connection occupies one of the worker's slots even if it never sends a request, and needs no key for that. Therefore:

- Everything that a client sends has a deadline. The worker checks deadlines once a second, without a timer for each
  request.
- An address may have only a part of the slots for connections without a complete request header.
- When nearly all slots are in use, the connection that has waited longest is closed.
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

#: Seconds from accepting a connection to its first byte.
FIRST_BYTE_SECONDS = 5.0
#: Seconds from a response to the next request: more than usual load balancers wait, so that they close first.
KEEP_ALIVE_SECONDS = 75
#: Seconds from the first byte of a request to the end of its header.
HEADER_SECONDS = 5.0
#: Seconds for a whole body, plus one more for each BYTES_A_SECOND bytes received.
BODY_SECONDS, BYTES_A_SECOND = 10.0, 16 * 1024
#: Seconds to receive the part of a body that the application didn't read: closing while the client still sends would
#: lose the response.
LEFT_BODY_SECONDS = 30.0
LEFT_BODY_STEP = 256 * 1024
#: An address may have 1/HEADERLESS of the slots for connections without a complete header; 1/FREE of all is kept free.
HEADERLESS, FREE = 4, 20
#: Seconds after which a request that waits for its client may be aborted if slots are needed.
STALLED_SECONDS = 5.0
#: Least seconds between two log lines about closed connections.
LOG_SECONDS = 60.0

log = structlog.get_logger(__name__)


class Connection(gevent.socket.socket):  # type: ignore[misc]  # gevent has no types
    """A client connection with a deadline for the data that it has to send next."""

    timeout: float | None
    pool: ClientPool
    #: The client's address as counted by ClientPool (IPv6: the /64 network).
    origin: bytes
    #: Whether no complete request header has arrived yet.
    is_headerless: bool
    #: gunicorn's current request (None between requests), its start, and whether a part of its response has been sent.
    request: Any = None
    began_at: float
    is_answered: bool
    #: Whether no byte of the next request has arrived.
    is_idle: bool
    #: Whether what is received next begins a request.
    is_between: bool
    #: The deadline (monotonic seconds) for the next data, and the seconds by which each received byte extends it.
    deadline: float
    seconds_a_byte: float

    def await_request(self, seconds: float) -> None:
        """Set the deadline for the next request's first byte."""
        # Bytes behind the last request are the begin of the next one, which gunicorn's parser has already.
        self.is_between = self.request is None or not self.request.unreader.buf.getvalue()
        self.request, self.is_idle = None, True
        self.deadline, self.seconds_a_byte = monotonic() + seconds, 0.0
        self.pool.waiting[self] = None

    def begin(self, request: Any) -> None:
        """Begin a request whose header is complete, and set the deadline for its body."""
        self.pool.waiting.pop(self, None)
        if self.is_headerless:
            self.pool.header_received(self)
        self.request, self.began_at, self.is_answered = request, monotonic(), False
        self.deadline, self.seconds_a_byte = self.began_at + BODY_SECONDS, 1 / BYTES_A_SECOND

    def take_rest(self) -> bool:
        """Receive the unread rest of the body; return whether it arrived completely and in time."""
        body = self.request.body
        if getattr(body.reader, "length", None) == 0:  # nothing is left, the usual case
            return True
        self.deadline, self.seconds_a_byte = monotonic() + LEFT_BODY_SECONDS, 0.0
        self.pool.waiting[self] = None
        try:
            while body.read(LEFT_BODY_STEP) and getattr(body.reader, "length", None) != 0:
                gevent.sleep(0)  # let other greenlets run, however fast the data comes
        except (OSError, ParseException):
            return False
        return True

    def announce_close(self) -> None:
        """Send `Connection: close` with the current response, unless its header has been sent."""
        if self.request is not None and not self.is_answered:
            self.request.force_close()

    def recv(self, *args: Any) -> bytes:
        """Receive bytes before the deadline.

        After the deadline returns b"" as if the client had closed the connection, so that gunicorn closes it without a
        response. Raises TimeoutError instead within a body.
        """
        if self.request is not None:
            return self._recv_body(*args)
        data = self._recv_header(*args)
        while self.is_between and (refused := self.pool.refuse(data)):
            self.sendall(refused)
            if self.is_headerless:
                self.pool.header_received(self)
            self.pool.waiting.pop(self, None)  # a connection that waits from now on stands last
            self.await_request(KEEP_ALIVE_SECONDS)
            data = self._recv_header(*args)
        self.is_between = False
        return data

    def _recv_header(self, *args: Any) -> bytes:
        try:
            data: bytes = super().recv(*args)
        except TimeoutError:
            data = self._last_look(*args) if self.is_idle else b""
        if self.is_idle:
            self.is_idle, self.deadline = False, monotonic() + HEADER_SECONDS
            self.pool.waiting[self] = None  # it is there already, unless `_end_waits` has just removed it
        return data

    def _last_look(self, *args: Any) -> bytes:
        """Return received bytes: a request may have arrived although this greenlet has not run yet."""
        self.timeout = 0.0
        try:
            return super().recv(*args)  # type: ignore[no-any-return]
        except BlockingIOError:
            return b""
        finally:
            self.timeout = None

    def _recv_body(self, *args: Any) -> bytes:
        self.pool.stalled[self] = self.began_at
        try:
            data: bytes = super().recv(*args)
        except TimeoutError:
            self.request.force_close()
            raise
        finally:
            self.pool.stalled.pop(self, None)
        self.deadline += len(data) * self.seconds_a_byte
        return data

    def sendall(self, data: bytes, flags: int = 0) -> None:
        """Send bytes, waiting while the client doesn't read."""
        self.is_answered = True
        try:
            sent = self.send(data, flags, 0.0)
        except BlockingIOError:
            sent = 0
        if sent == len(data):
            return
        self.pool.stalled[self] = monotonic()
        try:
            super().sendall(memoryview(data)[sent:], flags)
        finally:
            self.pool.stalled.pop(self, None)

    def stop_reading(self) -> None:
        """Abort the wait for data from this client, if any."""
        self.hub.cancel_wait(self._read_event, TimeoutError("the client took too long, or its slot was needed"))

    def stop_writing(self) -> None:
        """Abort the wait for this client to read, if any, as if it had disconnected."""
        self.hub.cancel_wait(self._write_event, BrokenPipeError(errno.EPIPE, "the slot of this client was needed"))


class ClientPool(gevent.pool.Pool):  # type: ignore[misc]  # gevent has no types
    """The greenlet pool of a worker's connections.

    `bounds_addresses` is False behind proxies; `refuse` returns the response to received bytes that are answered before
    they are parsed (aiapi.overload), and None for all others.
    """

    def __init__(
        self, size: int, *, bounds_addresses: bool, refuse: Callable[[bytes], bytes | None] = lambda _: None
    ) -> None:
        super().__init__(size)
        self.refuse = refuse
        self.connections: set[Connection] = set()
        #: Connections without a complete header or between two requests; the first has waited longest.
        self.waiting: dict[Connection, None] = {}
        #: Connections whose request waits for its client to send the body or read the response, and since when.
        self.stalled: dict[Connection, float] = {}
        self._most_headerless = size // HEADERLESS if bounds_addresses else size
        self._headerless: dict[bytes, dict[Connection, None]] = {}
        self._logged_at = -LOG_SECONDS

    def enter(self, connection: Connection, address: Any) -> None:
        """Add a new connection; if its address has too many without a header, close the oldest of those."""
        connection.pool, connection.origin, connection.is_headerless = self, _origin(address), True
        self.connections.add(connection)
        headerless = self._headerless.setdefault(connection.origin, {})
        headerless[connection] = None
        if len(headerless) > self._most_headerless:
            self._end_waits(next(iter(headerless)), "address")

    def header_received(self, connection: Connection) -> None:
        """Stop counting a connection among those without a complete header."""
        connection.is_headerless = False
        headerless = self._headerless[connection.origin]
        del headerless[connection]
        if not headerless:
            del self._headerless[connection.origin]

    def leave(self, connection: Connection) -> None:
        """Remove a connection."""
        self.connections.discard(connection)
        self.waiting.pop(connection, None)
        if connection.is_headerless:
            self.header_received(connection)

    def end_overdue(self) -> None:
        """Abort the waits whose deadline has passed."""
        now = monotonic()
        for connection in [connection for connection in self.connections if connection.deadline < now]:
            connection.stop_reading()

    def full(self) -> bool:
        """Return whether all slots are in use. gevent asks before each accept, so this may close one."""
        if self.free_count() <= self.size // FREE and (oldest := self._oldest()) is not None:
            self._end_waits(oldest, "places")
        return bool(super().full())

    def _oldest(self) -> Connection | None:
        """Return the connection that has waited longest, else a request whose client has stalled, else None."""
        if self.waiting:
            return next(iter(self.waiting))
        until = monotonic() - STALLED_SECONDS
        return next((connection for connection, since in self.stalled.items() if since < until), None)

    def _end_waits(self, connection: Connection, cause: str) -> None:
        self.waiting.pop(connection, None)
        self.stalled.pop(connection, None)
        if connection.is_headerless:
            self.header_received(connection)  # `leave` follows later; until then it must not be chosen again
        connection.stop_reading()
        connection.stop_writing()
        if monotonic() - self._logged_at >= LOG_SECONDS:
            self._logged_at = monotonic()
            log.warning("connections_let_go", cause=cause, connections=len(self.connections))


class Listener(gevent.server.StreamServer):  # type: ignore[misc]  # gevent has no types
    """A listening socket whose connections have deadlines."""

    def __init__(self, listener: Any, handle: Callable[..., None], pool: ClientPool, *, max_accept: int) -> None:
        super().__init__(listener, handle=handle, spawn=pool)
        self.max_accept = max_accept

    def do_read(self) -> tuple[Connection, Any] | None:
        """Accept a connection; None if none is waiting."""
        try:
            descriptor, address = self.socket._accept()
        except BlockingIOError:
            return None
        return Connection(self.socket.family, self.socket.type, self.socket.proto, fileno=descriptor), address

    def drain(self, seconds: float) -> None:
        """Refuse new connections and accept those in the queue, which closing the socket would reset.

        All workers of a server share the socket, so none of them gets new connections after this. `seconds`: wait for
        TCP handshakes that have begun.
        """
        _refuse_new(self.socket)
        gevent.sleep(seconds)  # for handshakes that have begun
        while accepted := self.do_read():
            self.do_handle(*accepted)


def _origin(address: Any) -> bytes:
    """Return the address under which a client is counted: for IPv6 its /64 network, which belongs to one customer."""
    host = address[0] if isinstance(address, tuple) else ""
    if ":" not in host:
        return str(host).encode()
    packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return packed if packed.startswith(b"\0" * 10) else packed[:8]  # IPv4-mapped and loopback addresses whole


#: Classic BPF program for TCP segments: drop those with SYN but not ACK (new connections), accept all others.
_DROP_SYN = [(0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF)]
_SO_ATTACH_FILTER = 26


def _refuse_new(listening: Any) -> None:
    """Make the kernel drop new connections (Linux); clients repeat the SYN and then find the port closed.

    Otherwise a connection could enter the queue between the last accept and the close, and be reset.
    """
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _DROP_SYN))
    if listening.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):  # not on Linux: such a connection is reset
            program = struct.pack("HL", len(_DROP_SYN), ctypes.addressof(code))
            listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)

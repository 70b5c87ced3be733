"""The relay of a stream: the provider's chunks as they arrive (RFC 9112, section 7.1), and the queue for the client.

This is the fast path. While both greenlets of a stream wait, the event loop reads a piece (`ChunkedReading`) and writes
it to the client's socket (`Outlet.put`). CPU a chunk, in multiples of a relay that only hands bytes on, at 1,000 chunks
a second over 40 streams, in one run on a busy machine: 1.0 to 1.1 with the fast path; 1.7 to 2.2 with one generator in
the request's greenlet, which read through the response's buffer and wrote to the socket itself. Through the queue alone
it was 2.0 to 2.2 (bench/RESULTS.md).
"""

from __future__ import annotations

import queue
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException
from io import BufferedReader
from typing import Any

import gevent
import gevent.socket
import gevent.ssl
from django.conf import settings
from django.http import HttpRequest
from gevent.event import AsyncResult
from gevent.monkey import get_original

#: More bytes than a buffered reader keeps, and as many as a TLS record holds: such a read leaves nothing behind.
READ_SIZE = 16 * 1024
CRLF = b"\r\n"
#: Most bytes of a line: a chunk's size with its extensions, or a trailer.
LONGEST_LINE = 64 * 1024
#: Seconds between two checks of a stream.
CLIENT_POLL_SECONDS = 0.5
KEEP_ALIVE = b": keep-alive\n\n"
#: Most pieces queued for a slow client; beyond them, the producer waits SLOW_SECONDS between two checks.
LONGEST_QUEUE = 256
SLOW_SECONDS = 0.05


class ProtocolError(HTTPException):
    """A chunked body is invalid or breaks off."""


class Chunks:
    """Parses a chunked body (RFC 9112, section 7.1), in half the time of the standard library's reader."""

    def __init__(self) -> None:
        self.is_over = False
        self._rest = b""
        #: Bytes missing of the current chunk, including its CRLF.
        self._left = 0
        self._is_in_trailer = False

    def feed(self, data: bytes) -> bytes:
        """Process received bytes and return those of the body; raises ProtocolError for invalid chunks."""
        if self._rest:
            data = self._rest + data
        pieces, at = [], 0
        while not self.is_over:
            if self._left > len(CRLF):
                piece = data[at : at + self._left - len(CRLF)]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
            if self._left > len(data) - at:
                break
            if self._left:
                if data[at : at + len(CRLF)] != CRLF:
                    raise ProtocolError("a chunk that does not end")
                at, self._left = at + len(CRLF), 0
            end = data.find(CRLF, at)
            if end < 0:
                if len(data) - at > LONGEST_LINE:
                    raise ProtocolError("a line that does not end")
                break
            self._begin(data[at:end])
            at = end + len(CRLF)
        self._rest = data[at:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _begin(self, line: bytes) -> None:
        """Process the line before a chunk, or a line of the trailer, which ends with an empty one."""
        if self._is_in_trailer:
            self.is_over = not line
            return
        try:
            size = int(line.split(b";", 1)[0], 16)
        except ValueError:
            size = -1
        if size < 0:
            raise ProtocolError("no chunk")
        self._is_in_trailer = size == 0
        self._left = size + len(CRLF) if size else 0

    def end(self) -> None:
        """Process the end of the connection; raises ProtocolError if the body is incomplete."""
        if not self._is_in_trailer:
            raise ProtocolError("a chunk that breaks off")
        self.is_over = True


class ChunkedReading:
    """Reads one body in a greenlet or thread, and from gevent's sockets also in the event loop.

    `file` is the buffered reader of the headers, which may already hold bytes of the body. It is closed after the first
    read, because its buffer would be a seventh of the memory of an open stream.
    """

    def __init__(self, file: BufferedReader, connection: socket.socket) -> None:
        self._file: BufferedReader | None = file
        self._chunks = Chunks()
        self._socket: Any = connection
        self._has_loop = type(connection) in (gevent.socket.socket, gevent.ssl.SSLSocket)
        #: Passes bytes, or the exception of reading them, from the event loop to the waiting greenlet.
        self._handed: AsyncResult[bytes] | None = None
        self._watcher: Any = None

    def read(self, takes: Callable[[bytes], bool] | None) -> bytes | None:
        """Return the next bytes of the body, which may be empty; None at its end. Raises ProtocolError or OSError.

        Where possible, `takes` gets the bytes that arrive while this waits, and returns whether it has handled them. It
        runs in the event loop and must not block.
        """
        if self._chunks.is_over:
            return None
        if self._file is not None:
            file, self._file = self._file, None
            with file:
                return self._feed(file.read1(READ_SIZE))
        # Bytes that TLS has decrypted and not handed over: the loop has no event for them.
        is_pending = isinstance(self._socket, gevent.ssl.SSLSocket) and self._socket.pending()
        if takes is not None and self._has_loop and not is_pending:
            return self._wait(takes)
        return self._feed(self._socket.recv(READ_SIZE))

    def cancel(self) -> None:
        """End the wait of another greenlet, before the connection is closed."""
        if self._handed is not None and not self._handed.ready():
            self._handed.set_exception(ConnectionAbortedError())
        if self._watcher is not None:
            self._watcher.stop()

    def _feed(self, data: bytes) -> bytes:
        """Parse the chunks in `data`; empty data is the end of the connection."""
        piece = self._chunks.feed(data)
        if not data:
            self._chunks.end()
        return piece

    def _wait(self, takes: Callable[[bytes], bool]) -> bytes:
        """Let the event loop read until `takes` does not handle a piece, and return that piece."""
        handed = self._handed = AsyncResult()
        watcher = self._watcher = gevent.get_hub().loop.io(self._socket.fileno(), 1)
        timeout = self._socket.gettimeout()
        self._socket.settimeout(0.0)
        try:
            watcher.start(self._arrived, takes, handed)
            piece: bytes = handed.get(timeout=timeout)
        except gevent.Timeout as error:
            raise TimeoutError from error
        finally:
            self._handed = self._watcher = None
            watcher.stop()
            watcher.close()
            self._socket.settimeout(timeout)
        return piece

    def _arrived(self, takes: Callable[[bytes], bool], handed: AsyncResult[bytes]) -> None:
        """Read from the socket in the event loop."""
        if handed.ready():
            return
        try:
            piece = self._feed(self._socket.recv(READ_SIZE))
            if self._chunks.is_over or (piece and not takes(piece)):
                handed.set(piece)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except Exception as error:  # noqa: BLE001  (passed to the waiting greenlet)
            handed.set_exception(error)


class ClientSocket:
    """The socket of one request's client. Other servers than gunicorn provide none, so the client never seems gone."""

    def __init__(self, request: HttpRequest) -> None:
        self._socket: socket.socket | None = request.META.get("gunicorn.socket")
        self._poll: Callable[[int], list[tuple[int, int]]] | None = None
        if self._socket is not None:
            # The system's own poll does not block: gevent's waits, and select fails for file numbers above 1023.
            poll = get_original("select", "poll")()
            poll.register(self._socket.fileno(), select.POLLRDHUP)
            self._poll = poll.poll
        # Direct writes need a socket without TLS, and greenlets: threads could write at the same time.
        is_plain = isinstance(self._socket, gevent.socket.socket) and not isinstance(self._socket, gevent.ssl.SSLSocket)
        #: Whether the body is sent in chunks over a socket that can be written to without blocking.
        self.can_send = is_plain and request.META.get("SERVER_PROTOCOL") == "HTTP/1.1"

    def is_gone(self) -> bool:
        """Return whether the client has closed the connection."""
        return self._poll is not None and bool(self._poll(0))  # a closed socket has an event as well

    def send_chunk(self, piece: bytes) -> bytes:
        """Write a piece as one chunk (RFC 9112, section 7.1) without blocking, and return the bytes not written.

        Raises OSError if nothing was written: the buffer is full, or the client has disconnected.
        """
        chunk = b"%x\r\n%b\r\n" % (len(piece), piece)
        sent: int = self._socket.send(chunk, 0, 0.0)  # type: ignore[union-attr,call-arg]  # gevent's takes a timeout
        return chunk[sent:] if sent < len(chunk) else b""

    def send_rest(self, rest: bytes) -> None:
        """Write the bytes that `send_chunk` returned, and wait until all are sent; raises OSError."""
        self._socket.sendall(rest)  # type: ignore[union-attr]


class Transcript:
    """Everything that was sent, for a replay; None once it is larger than `largest` bytes."""

    def __init__(self, largest: int) -> None:
        self._left = largest
        self._pieces: list[bytes] = []

    def add(self, piece: bytes) -> None:
        """Add a piece; drop everything if it becomes too large."""
        self._left -= len(piece)
        if self._left < 0:
            self._pieces.clear()
        else:
            self._pieces.append(piece)

    @property
    def content(self) -> bytes | None:
        """Return everything that was sent; None if it was too large."""
        return b"".join(self._pieces) if self._left >= 0 else None


class _Rest(bytes):
    """The end of a chunk whose beginning was already written."""


class Outlet:
    """The queue of pieces for one client. The producer adds them; the request's thread, the reader, iterates over them.

    Under gevent, the producer writes to the client's socket directly while the reader only waits for another piece:
    nothing else runs in between there.
    """

    def __init__(self, client: ClientSocket) -> None:
        self.has_reader = True
        self.started = threading.Event()
        self._client = client
        self.can_send = client.can_send
        self._is_read = False
        #: Whether the reader waits and has nothing left to write.
        self.is_idle = False
        self._pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._written_at = time.monotonic()
        self._longest_silence: float = settings.STREAM_KEEP_ALIVE_SECONDS

    def __iter__(self) -> Iterator[bytes]:
        """Yield the client's bytes until the stream ends or the client disconnects."""
        self._is_read = True
        if not self.started.is_set():
            yield KEEP_ALIVE  # the server sends status and headers with the first piece
        is_begun = False
        while (piece := self._next(may_idle=is_begun and self.can_send)) is not None:
            self._written_at = time.monotonic()
            if isinstance(piece, _Rest):
                self._client.send_rest(piece)
            else:
                yield piece
            is_begun = True

    def put(self, piece: bytes, *, gives_up: Callable[[], bool]) -> None:
        """Add a piece. If the queue is full, wait for space, or drop the reader once `gives_up` returns true."""
        if self.is_idle and self._send(piece):
            return
        while self.has_reader and self._pieces.qsize() >= LONGEST_QUEUE:
            if gives_up():
                self.leave()
            time.sleep(SLOW_SECONDS)
        if self.has_reader:
            self._enqueue(piece)

    def end(self) -> None:
        """End the reader's iteration after the queued pieces."""
        self._enqueue(None)
        self.started.set()

    def leave(self) -> None:
        """End the reader's iteration and accept no more pieces."""
        self.has_reader = False
        self._enqueue(None)

    def _next(self, *, may_idle: bool) -> bytes | None:
        """Wait for a piece to write; None at the end."""
        self.is_idle = may_idle and self._pieces.empty()
        try:
            return self._pieces.get()
        finally:
            self.is_idle = False

    def _enqueue(self, piece: bytes | None) -> None:
        self.is_idle = False
        self._pieces.put(piece)

    def _send(self, piece: bytes) -> bool:
        """Write to the client's socket; False if it accepts nothing now, so that the reader has to write."""
        try:
            rest = self._client.send_chunk(piece)
        except OSError:
            return False
        self._written_at = time.monotonic()
        if rest:
            self._enqueue(_Rest(rest))
        return True

    def wait(self, seconds: float) -> None:
        """Wait until there is something to write or the reader has left, at most `seconds`."""
        ends = time.monotonic() + seconds
        while self.has_reader and not self.started.wait(max(0.0, min(CLIENT_POLL_SECONDS, ends - time.monotonic()))):
            if time.monotonic() >= ends:
                return

    def has_lost_its_reader(self, now: float) -> bool:
        """Return whether the client has disconnected; send it a keep-alive if nothing was written for long."""
        if not self.has_reader:
            return False
        if self._client.is_gone():
            return True
        if self._is_read and now - self._written_at >= self._longest_silence:
            self._enqueue(KEEP_ALIVE)
            self._written_at = now
        return False

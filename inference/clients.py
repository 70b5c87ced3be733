"""The client's side of a call: its socket, whether it has left, and the queue of a stream's pieces for it.

One thread a process (a greenlet under gevent) watches all calls: a timer for each piece would cost more than the piece.

The fast path of a stream is here and in ChunkedReading (inference.upstream.body): the event loop reads a piece, and
`Outlet.put` writes it to the client's socket, while both greenlets of the stream wait. CPU a chunk, in multiples of a
relay that only hands bytes on, at 1,000 chunks a second over 40 streams, in one run on a busy machine: 1.0 to 1.1 with
the fast path; 1.7 to 2.2 with one generator in the request's greenlet, which read through the response's buffer and
wrote to the socket itself. Through the queue alone it was 2.0 to 2.2 (bench/RESULTS.md).
"""

from __future__ import annotations

import queue
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import gevent.socket
import gevent.ssl
import structlog
from django.conf import settings
from django.http import HttpRequest
from gevent.monkey import get_original

from core.background import ProcessThread
from core.errors import ApiError, Unavailable
from core.telemetry import metrics
from inference.upstream.transport import Abort

#: Seconds between two checks of a stream.
CLIENT_POLL_SECONDS = 0.5
KEEP_ALIVE = b": keep-alive\n\n"
#: Most pieces queued for a slow client; beyond them, the producer waits SLOW_SECONDS between two checks.
LONGEST_QUEUE = 256
SLOW_SECONDS = 0.05

log = structlog.get_logger(__name__)


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
        if self._socket is None or self._poll is None:
            return False
        return self._socket.fileno() < 0 or bool(self._poll(0))

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
        if self._is_read and now - self._written_at >= settings.STREAM_KEEP_ALIVE_SECONDS:
            self._enqueue(KEEP_ALIVE)
            self._written_at = now
        return False


class Watched(Protocol):
    """Something that a Watch checks."""

    def look(self, now: float) -> None:
        """Check it; `now` is in monotonic seconds."""


class Watch:
    """Checks everything that was added, every CLIENT_POLL_SECONDS."""

    def __init__(self) -> None:
        self._watched: set[Watched] = set()
        self._thread = ProcessThread(self._run, name="stream-watch")

    def add(self, stream: Watched) -> None:
        """Begin to check a stream."""
        self._watched.add(stream)
        self._thread.start()

    def discard(self, stream: Watched) -> None:
        """Stop checking a stream."""
        self._watched.discard(stream)

    def _run(self) -> None:
        while True:
            time.sleep(CLIENT_POLL_SECONDS)
            now = time.monotonic()
            for stream in list(self._watched):
                try:
                    stream.look(now)
                except Exception as error:  # the other streams must still be checked
                    log.exception("stream_not_watched", cause=type(error).__name__)


watch = Watch()


class ClientLeft(Exception):
    """The client has disconnected, and no other call waits for the answer."""


class DisconnectWatch:
    """Stops a non-streamed call to a provider when its client disconnects, unless others wait for it (`is_awaited`)."""

    def __init__(self, client: ClientSocket, is_awaited: Callable[[], bool]) -> None:
        self.abort = Abort()
        self._client = client
        self._is_awaited = is_awaited

    def is_unwanted(self) -> bool:
        """Return whether the client has disconnected and no other call waits for the answer."""
        return self.abort.is_set or (self._client.is_gone() and not self._is_awaited())

    def interruption(self) -> ClientLeft | None:
        """Return the reason to end the call, if there is one."""
        return ClientLeft() if self.is_unwanted() else None

    def look(self, now: float) -> None:
        """Stop the call if its answer is unwanted."""
        if self.is_unwanted():
            self.abort.set()

    @contextmanager
    def watching(self) -> Iterator[Abort]:
        """Check every CLIENT_POLL_SECONDS while the block runs; yields the abort for the call to use."""
        watch.add(self)
        try:
            yield self.abort
        finally:
            watch.discard(self)


class Stoppable(Protocol):
    """A stream in progress."""

    def stop(self, error: ApiError) -> None:
        """End it with an error."""


class OpenStreams:
    """A set of streams, counted in the metrics."""

    def __init__(self) -> None:
        self._streams: set[Stoppable] = set()

    def add(self, stream: Stoppable) -> None:
        """Note that a stream's producer runs."""
        self._streams.add(stream)
        metrics.open_streams.set(len(self._streams))

    def discard(self, stream: Stoppable) -> None:
        """Note that a stream's producer has settled and ended."""
        self._streams.discard(stream)
        metrics.open_streams.set(len(self._streams))

    def stop(self) -> None:
        """End every stream with an error because the process shuts down; the producers settle them."""
        for stream in list(self._streams):
            stream.stop(Unavailable("The server is restarting."))

    def wait(self, seconds: float) -> None:
        """Wait until all producers have ended, at most `seconds`."""
        ends = time.monotonic() + seconds
        while self._streams and time.monotonic() < ends:
            time.sleep(0.05)


open_streams = OpenStreams()

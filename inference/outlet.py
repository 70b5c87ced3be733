"""The client's side of a stream: the queue of pieces for it, keep-alives, and checks whether it is still connected.

One thread a process (a greenlet under gevent) watches all streams: a timer for each piece would cost more than the
piece.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import structlog
from django.conf import settings

from core.background import ProcessThread
from inference.client_socket import ClientSocket

#: Seconds between two checks of a stream.
WATCH_SECONDS = 0.5
KEEP_ALIVE = b": keep-alive\n\n"
#: Most pieces queued for a slow client; beyond them, the producer waits SLOW_SECONDS between two checks.
LONGEST_QUEUE = 256
SLOW_SECONDS = 0.05

log = structlog.get_logger(__name__)


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
        while self.has_reader and not self.started.wait(max(0.0, min(WATCH_SECONDS, ends - time.monotonic()))):
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
    """Checks everything that was added, every WATCH_SECONDS."""

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
            time.sleep(WATCH_SECONDS)
            now = time.monotonic()
            for stream in list(self._watched):
                try:
                    stream.look(now)
                except Exception as error:  # the other streams must still be checked
                    log.exception("stream_not_watched", cause=type(error).__name__)


watch = Watch()

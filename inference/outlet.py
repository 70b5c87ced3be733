"""What goes to the client of one stream: the pieces that wait for it, and the look at whether it is still there.

One thread a process (a greenlet under gevent) looks after all streams: a timer for each piece of each would cost more
than the piece.
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

#: Seconds between two looks after a stream.
WATCH_SECONDS = 0.5
KEEP_ALIVE = b": keep-alive\n\n"
#: Pieces that wait for a slow client before the provider's stream is read on, and seconds between two looks then.
LONGEST_QUEUE = 256
SLOW_SECONDS = 0.05

log = structlog.get_logger(__name__)


class Transcript:
    """All that was sent, for whoever asks again; None once it has become larger than `largest` bytes."""

    def __init__(self, largest: int) -> None:
        self._left = largest
        self._pieces: list[bytes] = []

    def add(self, piece: bytes) -> None:
        """Take a piece, or let go of all where it is one too many."""
        self._left -= len(piece)
        if self._left < 0:
            self._pieces.clear()
        else:
            self._pieces.append(piece)

    @property
    def content(self) -> bytes | None:
        """Return the whole."""
        return b"".join(self._pieces) if self._left >= 0 else None


class _Rest(bytes):
    """The end of a chunk whose beginning is written."""


class Outlet:
    """The pieces for one client. The producer puts them in, the request's own thread iterates over them.

    Under gevent, where nothing else runs in between, the producer writes to the client's socket itself while that
    thread only waits for another piece.
    """

    def __init__(self, client: ClientSocket) -> None:
        self.has_reader = True
        self.started = threading.Event()
        self._client = client
        self.can_send = client.can_send
        self._is_read = False
        #: Whether the reader waits, with nothing more to write.
        self.is_idle = False
        self._pieces: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._written_at = time.monotonic()

    def __iter__(self) -> Iterator[bytes]:
        """Yield what the client gets, until the end of the stream or until the client is gone."""
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
        """Hand a piece over, while the client is slow only when there is room, or not at all once it `gives_up`."""
        if self.is_idle and self._send(piece):
            return
        while self.has_reader and self._pieces.qsize() >= LONGEST_QUEUE:
            if gives_up():
                self.leave()
            time.sleep(SLOW_SECONDS)
        if self.has_reader:
            self._enqueue(piece)

    def end(self) -> None:
        """Let the reader come to its end, after what waits for it."""
        self._enqueue(None)
        self.started.set()

    def leave(self) -> None:
        """Take no more pieces: nobody reads them."""
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
        """Write to the client's socket; False if it takes nothing now: the reader waits, or finds the client gone."""
        try:
            rest = self._client.send_chunk(piece)
        except OSError:
            return False
        self._written_at = time.monotonic()
        if rest:
            self._enqueue(_Rest(rest))
        return True

    def wait(self, seconds: float) -> None:
        """Wait until there is something to write, or nobody to write it to."""
        ends = time.monotonic() + seconds
        while self.has_reader and not self.started.wait(max(0.0, min(WATCH_SECONDS, ends - time.monotonic()))):
            if time.monotonic() >= ends:
                return

    def has_lost_its_reader(self, now: float) -> bool:
        """Look whether the client has gone; if it is there and has heard nothing for long, send it a sign of life."""
        if not self.has_reader:
            return False
        if self._client.is_gone():
            return True
        if self._is_read and now - self._written_at >= settings.STREAM_KEEP_ALIVE_SECONDS:
            self._enqueue(KEEP_ALIVE)
            self._written_at = now
        return False


class Watched(Protocol):
    """What the watch looks after."""

    def look(self, now: float) -> None:
        """Look after it, at a moment (monotonic seconds)."""


class Watch:
    """Looks after everything that was added, every WATCH_SECONDS."""

    def __init__(self) -> None:
        self._watched: set[Watched] = set()
        self._thread = ProcessThread(self._run, name="stream-watch")

    def add(self, stream: Watched) -> None:
        """Look after it from now on."""
        self._watched.add(stream)
        self._thread.start()

    def discard(self, stream: Watched) -> None:
        """Let it be."""
        self._watched.discard(stream)

    def _run(self) -> None:
        while True:
            time.sleep(WATCH_SECONDS)
            now = time.monotonic()
            for stream in list(self._watched):
                try:
                    stream.look(now)
                except Exception as error:  # one stream's trouble is not the others'
                    log.exception("stream_not_watched", cause=type(error).__name__)


watch = Watch()

"""Clients that leave: one thread a process (a greenlet under gevent) checks whether those of all calls are still there.

A timer for each piece of a stream would cost more than the piece.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import structlog

from core.background import ProcessThread
from core.errors import ApiError, Unavailable
from core.telemetry import metrics
from inference.relay import CLIENT_POLL_SECONDS, ClientSocket
from inference.upstream.transport import Abort

log = structlog.get_logger(__name__)


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

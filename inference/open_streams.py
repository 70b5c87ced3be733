"""The streams whose producers run now, in this process; at its end they are ended too."""

from __future__ import annotations

import time
from typing import Protocol

from core.errors import ApiError, Unavailable
from core.telemetry import metrics


class Stoppable(Protocol):
    """A stream that runs."""

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
        """Note that it has settled, and runs no more."""
        self._streams.discard(stream)
        metrics.open_streams.set(len(self._streams))

    def stop(self) -> None:
        """End every stream with an error, each settled by its producer: the process is about to end."""
        for stream in list(self._streams):
            stream.stop(Unavailable("The server is restarting."))

    def wait(self, seconds: float) -> None:
        """Wait until no producer runs any more, or so many seconds."""
        ends = time.monotonic() + seconds
        while self._streams and time.monotonic() < ends:
            time.sleep(0.05)


open_streams = OpenStreams()

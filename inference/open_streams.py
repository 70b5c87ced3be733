"""The streams in progress in this process, which are ended with an error at its shutdown."""

from __future__ import annotations

import time
from typing import Protocol

from core.errors import ApiError, Unavailable
from core.telemetry import metrics


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

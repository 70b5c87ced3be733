"""Detection of clients that disconnect before their answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from core.telemetry.metrics import CLIENT_LEFT
from inference.client_socket import ClientSocket
from inference.outlet import watch
from inference.upstream.transport import Abort

__all__ = ["CLIENT_LEFT", "ClientLeft", "DisconnectWatch"]


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
        """Check every WATCH_SECONDS while the block runs; yields the abort for the call to use."""
        watch.add(self)
        try:
            yield self.abort
        finally:
            watch.discard(self)

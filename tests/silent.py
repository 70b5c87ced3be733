"""A server that takes connections and never answers: a process that is paused, or a network that swallows replies."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Silent:
    """It, and who has called."""

    listener: socket.socket

    @property
    def port(self) -> int:
        """Return where it listens."""
        return int(self.listener.getsockname()[1])

    @property
    def redis_url(self) -> str:
        """Return the URL of the Redis that it might be."""
        return f"redis://127.0.0.1:{self.port}/0"

    def calls(self) -> int:
        """Count the connections since the last time, and end them."""
        with suppress(BlockingIOError):
            self.listener.accept()[0].close()
            return 1 + self.calls()
        return 0


@contextmanager
def silent_server() -> Iterator[Silent]:
    """Listen on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield Silent(listener)

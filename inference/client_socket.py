"""The client's socket of a request, as gunicorn provides it: whether the client is connected, and direct writes to it.

Without direct writes, each piece of a stream wakes the request's greenlet and passes through Django, gunicorn and
gevent's `sendall`, which is a third of the piece's whole cost.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

import gevent.socket
import gevent.ssl
from django.http import HttpRequest
from gevent.monkey import get_original


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

"""The client's end of a request, as gunicorn hands it over: whether it is still there, and a short way to write to it.

A piece of a stream that goes the long way wakes the request's own greenlet and passes Django, gunicorn and gevent's
`sendall`: a third of what the piece costs in all.
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
    """The socket of one request's client; without one (another server than gunicorn) it knows of nobody."""

    def __init__(self, request: HttpRequest) -> None:
        self._socket: socket.socket | None = request.META.get("gunicorn.socket")
        self._poll: Callable[[int], list[tuple[int, int]]] | None = None
        if self._socket is not None:
            # The system's own poll, which only looks: gevent's waits, and select knows no file above 1023.
            poll = get_original("select", "poll")()
            poll.register(self._socket.fileno(), select.POLLRDHUP)
            self._poll = poll.poll
        # No TLS, and no thread that writes at the same time.
        is_plain = isinstance(self._socket, gevent.socket.socket) and not isinstance(self._socket, gevent.ssl.SSLSocket)
        #: Whether the body goes out in chunks over a socket that can be written to without a wait.
        self.can_send = is_plain and request.META.get("SERVER_PROTOCOL") == "HTTP/1.1"

    def is_gone(self) -> bool:
        """Look whether the client has closed its end."""
        if self._socket is None or self._poll is None:
            return False
        return self._socket.fileno() < 0 or bool(self._poll(0))

    def send_chunk(self, piece: bytes) -> bytes:
        """Write a piece as one chunk (RFC 9112, section 7.1), and return what the socket did not take at once of it.

        Raises OSError if it took nothing: it is full, or the client is gone.
        """
        chunk = b"%x\r\n%b\r\n" % (len(piece), piece)
        sent: int = self._socket.send(chunk, 0, 0.0)  # type: ignore[union-attr,call-arg]  # gevent's takes a timeout
        return chunk[sent:] if sent < len(chunk) else b""

    def send_rest(self, rest: bytes) -> None:
        """Write what `send_chunk` left, and wait until the client has taken it. Raises OSError."""
        self._socket.sendall(rest)  # type: ignore[union-attr]

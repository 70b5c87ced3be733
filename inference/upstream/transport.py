"""HTTP connections to providers: pooled, bounded in time, and closed when the answer is no longer wanted.

Sockets of our own. The standard library reads the lines of an answer's head, and `Answer` parses its headers. The
layers of an HTTP client cost more CPU than that: see bench/RESULTS.md. Nothing here knows what a request means.

Look-ups of names run in threads of their own, each name once at a time: a look-up at a silent name server can't be
cancelled, and under gevent ten threads make all look-ups of a process.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from http.client import (  # type: ignore[attr-defined]  # _read_headers is not in the stubs
    BadStatusLine,
    HTTPException,
    HTTPResponse,
    UnknownProtocol,
    _read_headers,
)
from select import POLLIN
from typing import Any
from urllib.parse import SplitResult, urlsplit

import structlog
from gevent import monkey

from core.background import LEAST_SLEEP
from core.network import addresses_of, parse_address
from inference.relay import READ_SIZE, ChunkedReading
from inference.upstream.codings import DamagedBody, unpacked
from inference.validators import is_forbidden_address

log = structlog.get_logger(__name__)

#: Idle connections kept for each provider; further ones are closed after use.
KEPT_CONNECTIONS = 200
#: Providers (scheme, host and port) whose idle connections are kept.
KEPT_PROVIDERS = 50
#: Bytes after which other greenlets run: a compressed body may expand to very many at once.
TURN = 1024 * 1024
#: A kept connection that was already closed reports that within these seconds of the request. If it closes later, the
#: provider may have worked on the request: that looks the same as a proxy that drops an idle connection.
ENDED_BEFORE_SECONDS = 2.0

#: Interim answers (RFC 9110, section 15.2) that are skipped, and how many of them at most. We ask for no 101.
INTERIM = {100, 102, 103}
MOST_INTERIM = 10
#: Answers without a body, whatever their headers say.
EMPTY = {204, 304}

#: Scheme, host, port, and whether the addresses that validate_provider_url forbids are refused.
Origin = tuple[str, str, int, bool]
#: gevent's own would switch to its loop.
_poll: Any = monkey.get_original("select", "poll")


class NotConnected(Exception):
    """No connection could be made, so no request was sent. Its cause says why: a TimeoutError if it took too long."""


class _Stale(ConnectionResetError):
    """A kept connection was closed before the first byte of the answer, and maybe before the request."""


class Abort:
    """Ends one request from another thread or greenlet, before its answer arrives or while it is read."""

    def __init__(self) -> None:
        self._over = threading.Event()
        #: The request's connection; None while there is none.
        self.socket: socket.socket | None = None

    @property
    def is_set(self) -> bool:
        """Return whether the request was aborted."""
        return self._over.is_set()

    def set(self) -> None:
        """Abort the request: the read in progress fails, and so do all that follow."""
        self._over.set()
        self.shut_down()

    def wait(self, seconds: float) -> None:
        """Wait a number of seconds, or until the request is aborted."""
        self._over.wait(seconds)

    def shut_down(self) -> None:
        """Shut down the current connection; another request may follow over another one."""
        if self.socket is not None:
            with suppress(OSError):
                # Bypass TLS, whose own shutdown would drop its state during a read in progress.
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def limit(self, seconds: float | None) -> None:
        """Set the timeout of each following read, in seconds; None: no timeout."""
        if self.socket is not None:
            with suppress(OSError):  # already closed: the answer is complete
                self.socket.settimeout(seconds)

    def watch(self, connection: socket.socket) -> None:
        """Note the request's connection; raises NotConnected, as for an unreachable host, if already aborted."""
        self.socket = connection
        if self.is_set:
            raise NotConnected("not wanted any more")

    def forget(self) -> None:
        """Forget the connection, which returns to its pool for other requests."""
        self.socket = None


class Lookups:
    """The look-ups of a process in progress."""

    def __init__(self) -> None:
        self._open: dict[str, Future[list[str]]] = {}
        self._lock = threading.Lock()

    def addresses_of(self, name: str, seconds: float) -> list[str]:
        """Return the addresses of a name within `seconds`; raises OSError (TimeoutError) or UnicodeError."""
        if parse_address(name):
            return addresses_of(name)
        with self._lock:
            asked = self._open.get(name)
            begins = asked is None
            if asked is None:
                asked = self._open[name] = Future()
        if begins:
            threading.Thread(target=self._look_up, args=[name, asked], name="look-up", daemon=True).start()
        return list(asked.result(seconds))

    def _look_up(self, name: str, asked: Future[list[str]]) -> None:
        try:
            asked.set_result(addresses_of(name))
        except Exception as error:  # noqa: BLE001  (passed to the waiting calls)
            asked.set_exception(error)
        finally:
            with self._lock:
                del self._open[name]


lookups = Lookups()


@cache
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _connect(origin: Origin, seconds: float) -> socket.socket:
    """Connect to the first address of a name that accepts; raises NotConnected.

    The look-up, all attempts and the TLS handshake share the time. Forbidden addresses are left out.
    """
    scheme, host, port, is_guarded = origin
    ends = time.monotonic() + seconds
    try:
        addresses = lookups.addresses_of(host, seconds)
        if is_guarded:
            addresses = [address for address in addresses if not is_forbidden_address(address)]
            if not addresses:
                raise PermissionError("the name leads to an address that is not allowed")
        while True:
            address, others = addresses.pop(0), len(addresses)
            try:
                connection = socket.create_connection((address, port), _until(ends) / (others + 1))
                break
            except OSError:
                if not others or time.monotonic() >= ends:
                    raise
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(_until(ends))
            return _tls().wrap_socket(connection, server_hostname=host) if scheme == "https" else connection
        except BaseException:
            connection.close()
            raise
    except (OSError, ValueError) as error:
        raise NotConnected("not reached") from error


def _until(ends: float) -> float:
    """Return the seconds until `ends` (monotonic), at least a millisecond: a timeout of 0 would mean none."""
    return max(0.001, ends - time.monotonic())


class Answer(HTTPResponse):
    """The standard library's response, without its parser of headers, which is that of e-mails."""

    fields: Mapping[str, str]

    def begin(self) -> None:
        """Read the head: status, headers by lower-case name in `fields`, and how the body ends.

        Of headers with one name `fields` has the first, of `connection` all; of a folded one the first line.
        """
        version, status, lines = self._read_final()
        fields: dict[str, str] = {}
        is_certain = True
        for line in lines:
            if line[0] in b" \t":
                continue
            name, _, value = line.decode("latin-1").partition(":")
            name, value = name.strip().lower(), value.strip()
            if name not in fields:
                fields[name] = value
            elif name == "connection":
                fields[name] += f", {value}"
            elif name in ("content-length", "transfer-encoding"):
                is_certain = False
        length, coding = fields.get("content-length", ""), fields.get("transfer-encoding", "")
        is_empty = status in EMPTY
        self.status, self.fields = status, fields
        self.chunked = coding.lower() == "chunked" and not is_empty
        self.length = 0 if is_empty else int(length) if length.isdecimal() and not self.chunked else None
        # The end of a body is uncertain if two headers tell it, or a coding that was not read.
        is_certain = is_certain and (not length if self.chunked else self.length is not None and not coding)
        self.will_close = not is_certain or version == "HTTP/1.0" or "close" in fields.get("connection", "").lower()

    def _read_final(self) -> tuple[str, int, list[bytes]]:
        """Return the version, the status and the lines of the first head that is not an interim answer's."""
        for _ in range(MOST_INTERIM + 1):
            version, status = self._read_status()[:2]  # type: ignore[attr-defined]  # not in the stubs
            if not version.startswith("HTTP/1."):
                raise UnknownProtocol(version)
            if status >= 200:
                return version, status, _read_headers(self.fp)[:-1]
            if status not in INTERIM:
                break
            _read_headers(self.fp)
        raise BadStatusLine("only interim answers")


class PooledTransport:
    """Sends requests over connections that the process's threads or greenlets share."""

    def __init__(self) -> None:
        self._idle: dict[Origin, list[socket.socket]] = {}  # the provider that was used last stands last
        self._lock = threading.Lock()

    def open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes | None,
        *,
        connect: float,
        read: float,
        is_guarded: bool = False,
        abort: Abort | None = None,
    ) -> Response:
        """Send a request and return its response once the head has arrived. Timeouts are in seconds.

        It is sent once more, over a new connection, if a kept one was closed before the answer began. Raises
        NotConnected if nothing was sent; TimeoutError, OSError, HTTPException or ValueError for other failures.
        """
        parts, abort = urlsplit(url), abort or Abort()
        origin, request = _origin(parts, is_guarded=is_guarded), _request(method, parts, headers, content)
        kept = self._take(origin)
        if kept is not None:
            with suppress(_Stale):
                return self._send(origin, kept, request, read, abort, is_kept=True)
            if abort.is_set:
                raise ConnectionAbortedError
        return self._send(origin, _connect(origin, connect), request, read, abort)

    def _send(
        self,
        origin: Origin,
        connection: socket.socket,
        request: bytes,
        read: float,
        abort: Abort,
        *,
        is_kept: bool = False,
    ) -> Response:
        try:
            abort.watch(connection)
            connection.settimeout(read)
            # A provider that refuses a request early closes its side, and the answer can be read all the same.
            with suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
                connection.sendall(request)
            sent_at = time.monotonic()
            answer = Answer(connection)
            if not _has_begun(answer):
                is_stale = is_kept and time.monotonic() - sent_at < ENDED_BEFORE_SECONDS
                raise _Stale if is_stale else ConnectionResetError
            answer.begin()
        except BaseException:
            connection.close()
            raise
        return Response(answer, connection, abort, lambda: self._give_back(origin, connection))

    def reaches(self, url: str, seconds: float, *, is_guarded: bool = False) -> bool:
        """Return whether a new connection to a URL's address can be made; it is closed again."""
        try:
            _connect(_origin(urlsplit(url), is_guarded=is_guarded), seconds).close()
        except NotConnected:
            return False
        return True

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            for connection in self._idle.popitem()[1]:
                connection.close()

    def _take(self, origin: Origin) -> socket.socket | None:
        """Return an idle connection, the one used last; None if there is none."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            poll = _poll()
            poll.register(connection.fileno(), POLLIN)
            if not poll.poll(0):
                return connection
            connection.close()  # the provider has closed it, or sent what nobody asked for
        return None

    def _give_back(self, origin: Origin, connection: socket.socket) -> None:
        with self._lock:
            idle = self._idle[origin] = self._idle.pop(origin, [])
            idle.append(connection)
            surplus = [idle.pop(0)] if len(idle) > KEPT_CONNECTIONS else []
            if len(self._idle) > KEPT_PROVIDERS:
                surplus += self._idle.pop(next(iter(self._idle)))
        for connection in surplus:
            connection.close()


def _origin(parts: SplitResult, *, is_guarded: bool) -> Origin:
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80), is_guarded


def _request(method: str, parts: SplitResult, headers: Mapping[str, str], content: bytes | None) -> bytes:
    """Write a request; raises ValueError for a header with a line break."""
    lines = [f"{method} {parts.path or '/'}{'?' if parts.query else ''}{parts.query} HTTP/1.1"]
    lines.append(f"host: {parts.netloc.rpartition('@')[2]}")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if content is not None:
        lines.append(f"content-length: {len(content)}")
    head = "\r\n".join(lines)
    if head.count("\n") + 1 != len(lines) or head.count("\r") + 1 != len(lines):
        raise ValueError("a line break in a header")
    return head.encode("latin-1") + b"\r\n\r\n" + (content or b"")


def _has_begun(answer: Answer) -> bool:
    """Wait for the first byte of an answer; return whether it came before the connection ended."""
    try:
        return bool(answer.fp.peek(1))
    except TimeoutError:
        raise
    except OSError:
        return False


class Response:
    """A provider's response: its status and headers, and the decoded bytes of its body as they arrive.

    The connection returns to its pool if the body is read to its end, and is closed otherwise.
    """

    def __init__(self, answer: Answer, connection: socket.socket, abort: Abort, give_back: Callable[[], None]) -> None:
        self.status: int = answer.status
        self.headers = answer.fields  # by lower-case name
        self._answer: Any = answer
        self._socket = connection
        self._abort = abort
        self._give_back = give_back
        self._is_whole = self._is_closed = False
        self._reading: ChunkedReading | None = None
        self._encoding = answer.fields.get("content-encoding", "")
        self._takes: Callable[[bytes], bool] | None = None

    def hand_to(self, takes: Callable[[bytes], bool]) -> None:
        """Offer bytes to `takes` from the event loop (see ChunkedReading), unless the body has a content coding."""
        if not self._encoding:
            self._takes = takes

    def __iter__(self) -> Iterator[bytes]:
        """Yield bytes as they arrive, without those that `takes` accepted.

        Raises OSError, HTTPException or DamagedBody.
        """
        return unpacked(self._pieces(), self._encoding) if self._encoding else self._pieces()

    def read(self, most: int) -> bytes:
        """Read the whole body and close it; raises DamagedBody beyond `most` bytes."""
        content, turn = bytearray(), TURN
        try:
            for piece in self:
                content += piece
                if len(content) > most:
                    raise DamagedBody("too large")
                if len(content) > turn:
                    turn += TURN
                    time.sleep(LEAST_SLEEP)
        finally:
            self.close()
        return bytes(content)

    def read_until(self, most: int) -> bytes:
        """Read at most `most` bytes, ignoring how the body ends, and close it."""
        content = bytearray()
        try:
            for piece in self:
                content += piece
                if len(content) >= most:
                    break
        except (OSError, HTTPException, DamagedBody):
            log.info("error_not_read", bytes=len(content))
        finally:
            self.close()
        return bytes(content[:most])

    def _pieces(self) -> Iterator[bytes]:
        answer = self._answer
        try:
            if answer.chunked:
                file, answer.fp = answer.fp, None  # the reading closes it
                reading = self._reading = ChunkedReading(file, self._socket)
                while (piece := reading.read(self._takes)) is not None:
                    if piece:
                        yield piece
            elif answer.length is None:
                while piece := answer.fp.read1(READ_SIZE):
                    yield piece
            else:
                left = answer.length
                while left:
                    piece = answer.fp.read1(min(left, READ_SIZE))
                    if not piece:
                        raise ConnectionResetError("broken off")
                    left -= len(piece)
                    yield piece
        except (OSError, HTTPException):
            answer.close()
            raise
        self._is_whole = not answer.will_close

    def close(self) -> None:
        """Close the connection, or return it to its pool if the body was read to its end."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._is_whole:
            self._abort.forget()
            self._answer.close()
            self._give_back()
            return
        self._abort.shut_down()
        if self._reading is not None:
            self._reading.cancel()
        with suppress(RuntimeError):  # a read in progress elsewhere fails now and closes the answer
            self._answer.close()
        self._socket.close()

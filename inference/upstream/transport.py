"""HTTP transport to providers over urllib3's connection pools, in place of the SDK's HTTP client.

It needs half the CPU of the SDK's client. URLs, headers and errors still come from the SDK, so responses and failures
are httpx2's.

Content codings (RFC 9110, section 8.4.1) are decoded in pieces of bounded size. Providers are asked for `identity`, but
some compress anyway, and some label an uncompressed body as compressed.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from http.client import HTTPResponse
from typing import Any

import brotli
import httpx2
import structlog
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    DecodeError,
    EmptyPoolError,
    HTTPError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util import Timeout

from core.background import LEAST_SLEEP
from inference.upstream.chunked import READ_SIZE, ChunkedReading
from inference.upstream.lookups import lookups
from inference.validators import is_forbidden_address

log = structlog.get_logger(__name__)

#: Most bytes that one step of decompression yields.
PIECE = 64 * 1024
#: Most codings of one body; no provider is known to use more than two.
MOST_CODINGS = 3
GZIP = b"\x1f\x8b"
#: The beginning of an uncompressed answer: an object, or a stream of events. No coding produces such bytes.
PLAIN = re.compile(rb"[ \t\r\n]*\{|(?:data|event|id|retry):|: ")

Unpack = Callable[[Iterator[bytes]], Iterator[bytes]]


def unpacked(pieces: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Yield a body decoded by its Content-Encoding, in pieces of bounded size.

    A body that is not in the named coding, or in an unknown one, is yielded unchanged. Raises DecodeError for a
    truncated or damaged body.
    """
    named = [name.strip().lower() for name in encoding.split(",")]
    codings = [name for name in named if name not in ("", "identity")]
    if len(codings) > MOST_CODINGS:
        raise DecodeError("too many content codings")
    for coding in reversed(codings):
        pieces = _without(coding, pieces)
    return pieces


def _without(coding: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    start = b""
    for piece in pieces:
        start += piece
        if len(start) > 1:
            break
    unpack = _unpacking(coding, start)
    rest = _joined(start, pieces)
    yield from unpack(rest) if unpack else rest


def _joined(start: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield start
    yield from pieces


def _unpacking(coding: str, start: bytes) -> Unpack | None:
    """Choose a decoder by the label and the first bytes: labels may be wrong, and "deflate" has two meanings."""
    if coding in ("gzip", "x-gzip", "deflate"):
        if start.startswith(GZIP) or _is_zlib(start):
            return lambda pieces: _inflated(pieces, zlib.MAX_WBITS + 32)  # gzip or zlib, by its header
        if coding == "deflate" and not PLAIN.match(start):
            return lambda pieces: _inflated(pieces, -zlib.MAX_WBITS)
        return None
    return _unbrotlied if coding == "br" and not PLAIN.match(start) else None


def _is_zlib(start: bytes) -> bool:
    """Return whether bytes begin with zlib's header (RFC 1950, section 2.2)."""
    return len(start) > 1 and start[0] & 0x0F == zlib.DEFLATED and int.from_bytes(start[:2], "big") % 31 == 0


def _inflated(pieces: Iterator[bytes], wbits: int) -> Iterator[bytes]:
    """Yield the bytes of all gzip members, or of the one zlib stream; trailing bytes are left out."""
    inflater = zlib.decompressobj(wbits)
    try:
        for piece in pieces:
            data = piece
            while data:
                if inflater.eof:
                    if data[0] != GZIP[0]:  # no further member
                        break
                    inflater = zlib.decompressobj(wbits)
                yield inflater.decompress(data, PIECE)
                data = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
        yield inflater.flush()
    except zlib.error as error:
        raise DecodeError("damaged") from error
    if not inflater.eof:
        raise DecodeError("broken off")


def _unbrotlied(pieces: Iterator[bytes]) -> Iterator[bytes]:
    unpacker = brotli.Decompressor()
    try:
        for piece in pieces:
            data = piece
            while not unpacker.is_finished():
                unpacked_piece = unpacker.process(data, output_buffer_limit=PIECE)
                data = b""
                yield unpacked_piece
                if not unpacked_piece and unpacker.can_accept_more_data():
                    break
    except brotli.error as error:
        raise DecodeError("damaged") from error
    if not unpacker.is_finished():
        raise DecodeError("broken off")


#: Idle connections kept for each provider; further ones are closed after use.
KEPT_CONNECTIONS = 200
#: Providers (scheme, host and port) whose pools are kept.
KEPT_POOLS = 50
#: Headers that describe the transfer of a body, which is passed on decoded.
FRAMING = ("content-encoding", "content-length", "transfer-encoding")
#: Bytes after which other greenlets run: a compressed body may expand to very many at once.
TURN = 1024 * 1024


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

    def watch(self, connection: HTTPConnection) -> None:
        """Note the request's connection; raises NewConnectionError, as for an unreachable host, if already aborted."""
        self.socket = connection.sock
        if self.is_set:
            raise NewConnectionError(connection, "not wanted any more")

    def forget(self) -> None:
        """Forget the connection, which returns to its pool for other requests."""
        self.socket = None


#: The abort of the next request of this thread or greenlet.
_abort: ContextVar[Abort] = ContextVar("abort")


@contextmanager
def abortable(abort: Abort) -> Iterator[None]:
    """Let `abort` end the requests sent in the block."""
    token = _abort.set(abort)
    try:
        yield
    finally:
        _abort.reset(token)


#: Whether the next request of this thread or greenlet needs a new connection.
_fresh: ContextVar[bool] = ContextVar("fresh", default=False)


#: A kept connection that was already closed reports that within these seconds of the request. If it closes later, the
#: provider may have worked on the request: that looks the same as a proxy that drops an idle connection.
ENDED_BEFORE_SECONDS = 2.0


class Unanswered(ProtocolError):
    """A kept connection was closed before the first byte of the answer, and maybe before the request."""


class _Response(HTTPResponse):
    """A response that raises Unanswered if no byte of it arrived."""

    def _read_status(self) -> Any:
        try:
            has_begun = bool(self.fp.peek(1))
        except TimeoutError:
            raise
        except OSError as error:
            raise Unanswered("reset") from error
        if not has_begun:
            raise Unanswered("closed")
        return super()._read_status()  # type: ignore[misc]


class _Watched(HTTPConnection):
    response_class = _Response
    is_guarded = False
    #: Whether it has answered a request before, and may have been closed by the peer since.
    has_answered = False
    sent_at = 0.0

    def connect(self) -> None:
        """Connect, with TLS for https. No request is sent yet, so a failure here has reached no provider."""
        self.has_answered = False
        try:
            super().connect()
        except TimeoutError as error:
            raise ConnectTimeoutError(self, "no connection in time") from error
        except (OSError, ValueError, SSLError) as error:
            raise NewConnectionError(self, type(error).__name__) from error

    def _new_conn(self) -> socket.socket:
        """Connect; a guarded connection to a forbidden address is closed before a byte is sent."""
        connected = self._connect_to_any()
        if self.is_guarded and is_forbidden_address(str(connected.getpeername()[0])):
            connected.close()
            raise NewConnectionError(self, "the name leads to an address that is not allowed")
        return connected

    def _connect_to_any(self) -> socket.socket:
        """Connect to the first address of the name that accepts.

        The look-up, all attempts and the TLS handshake share one timeout; urllib3 would give each address all of it.
        """
        name, timeout = self._dns_host, float(self.timeout or 0)
        ends = time.monotonic() + timeout
        addresses = lookups.addresses_of(name, timeout)
        try:
            while True:
                self._dns_host, others = addresses.pop(0), len(addresses)
                self.timeout = _until(ends) / (others + 1)
                try:
                    connected = super()._new_conn()
                except (ConnectTimeoutError, NewConnectionError):
                    if not others or time.monotonic() >= ends:
                        raise
                else:
                    connected.settimeout(_until(ends))
                    return connected
        finally:
            self._dns_host, self.timeout = name, timeout

    def request(self, *args: Any, **options: Any) -> None:
        if _fresh.get():
            self.close()
        if self.sock is None:
            self.connect()
        abort = _abort.get(None)
        if abort is not None:
            abort.watch(self)
        try:
            super().request(*args, **options)
            self.sent_at = time.monotonic()
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
            raise (Unanswered if self.has_answered else ProtocolError)("closed") from error

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as in urllib3 itself
        try:
            response = super().getresponse()
        except Unanswered as error:
            if self.has_answered and time.monotonic() - self.sent_at < ENDED_BEFORE_SECONDS:
                raise
            raise ProtocolError("no answer") from error
        self.has_answered = True
        return response


class _WatchedTLS(_Watched, HTTPSConnection):
    pass


class _Guarded(_Watched):
    is_guarded = True


class _GuardedTLS(_WatchedTLS):
    is_guarded = True


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Watched


class _PoolTLS(HTTPSConnectionPool):
    ConnectionCls = _WatchedTLS


class _GuardedPool(HTTPConnectionPool):
    ConnectionCls = _Guarded


class _GuardedPoolTLS(HTTPSConnectionPool):
    ConnectionCls = _GuardedTLS


class TooLargeAnswer(httpx2.DecodingError):
    """A decoded body has more bytes than may be read."""


class PooledTransport:
    """Sends requests over pools that the process's threads or greenlets share.

    A guarded transport refuses addresses that validate_provider_url forbids: the name was checked when it was saved,
    but may resolve to another address now.
    """

    def __init__(self, *, is_guarded: bool = False) -> None:
        self._pools = urllib3.PoolManager(num_pools=KEPT_POOLS, maxsize=KEPT_CONNECTIONS, block=False, retries=False)
        self._pools.pool_classes_by_scheme = (
            {"http": _GuardedPool, "https": _GuardedPoolTLS} if is_guarded else {"http": _Pool, "https": _PoolTLS}
        )

    def open(
        self, method: str, url: str, headers: dict[str, str], content: bytes | None, *, connect: float, read: float
    ) -> httpx2.Response:
        """Send a request and return its response once the headers have arrived. Timeouts are in seconds."""
        timeout, abort = Timeout(connect=connect, read=read), _abort.get(None) or Abort()
        with abortable(abort), _httpx_errors():
            response = self._request(
                method, url, headers, content, timeout, preload_content=False, decode_content=False
            )
        kept = [(name, value) for name, value in response.headers.items() if name.lower() not in FRAMING]
        return httpx2.Response(response.status, headers=kept, stream=Body(response, abort))

    def _request(
        self, method: str, url: str, headers: dict[str, str], content: bytes | None, timeout: Timeout, **options: Any
    ) -> urllib3.BaseHTTPResponse:
        """Send a request; repeat it over a new connection if a kept one was closed before the answer began."""
        options |= {"body": content, "headers": headers, "timeout": timeout, "redirect": False, "retries": False}
        try:
            return self._pools.urlopen(method, url, **options)
        except Unanswered:
            abort = _abort.get(None)
            if abort is not None and abort.is_set:
                raise
        token = _fresh.set(True)
        try:
            return self._pools.urlopen(method, url, **options)
        finally:
            _fresh.reset(token)

    def reaches(self, url: str, seconds: float) -> bool:
        """Return whether a new connection to a URL's address can be made; it is closed again."""
        connection: Any = self._pools.connection_from_url(url)._new_conn()
        connection.timeout = seconds
        try:
            connection.connect()
        except (HTTPError, OSError):
            return False
        finally:
            connection.close()
        return True

    def close(self) -> None:
        """Close the idle connections."""
        self._pools.clear()


class Body(httpx2.SyncByteStream):
    """A response's decoded bytes as they arrive.

    The connection returns to its pool if the body is read to its end, and is closed otherwise.
    """

    def __init__(self, response: urllib3.BaseHTTPResponse, abort: Abort) -> None:
        self._response = response
        self._abort = abort
        self._reading: ChunkedReading | None = None
        self._encoding = response.headers.get("Content-Encoding", "")
        self._takes: Callable[[bytes], bool] | None = None

    def hand_to(self, takes: Callable[[bytes], bool]) -> None:
        """Offer bytes to `takes` from the event loop (see ChunkedReading), unless the body has a content coding."""
        if not self._encoding:
            self._takes = takes

    def __iter__(self) -> Iterator[bytes]:
        """Yield bytes as they arrive, without those that `takes` accepted."""
        with _httpx_errors():
            yield from unpacked(self._pieces(), self._encoding) if self._encoding else self._pieces()

    def read(self, most: int) -> bytes:
        """Read the whole body and close it; raises TooLargeAnswer beyond `most` bytes."""
        content, turn = bytearray(), TURN
        try:
            for piece in self:
                content += piece
                if len(content) > most:
                    raise TooLargeAnswer("too large")
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
        except (httpx2.HTTPError, OSError):
            log.info("error_not_read", bytes=len(content))
        finally:
            self.close()
        return bytes(content[:most])

    def _pieces(self) -> Iterator[bytes]:
        response: Any = self._response
        if response.chunked and response.supports_chunked_reads():
            reading = self._reading = ChunkedReading(response._fp.fp, self._abort.socket)
            with response._error_catcher():
                while (piece := reading.read(self._takes)) is not None:
                    if piece:
                        yield piece
                response._fp.close()
            return
        while data := response.read1(READ_SIZE, decode_content=False):
            yield data

    def close(self) -> None:
        """Close the connection, or return it to its pool if the body was read to its end."""
        response: Any = self._response
        if response.closed:
            self._abort.forget()
            response.release_conn()
            return
        self._abort.shut_down()
        if self._reading is not None:
            self._reading.cancel()
        with suppress(RuntimeError):  # a read in progress elsewhere fails now and closes the connection
            response.close()


def _until(ends: float) -> float:
    """Return the seconds until `ends` (monotonic), at least a millisecond: a timeout of 0 would mean none."""
    return max(0.001, ends - time.monotonic())


@contextmanager
def _httpx_errors() -> Iterator[None]:
    """Convert urllib3's errors to the httpx2 errors that the SDK and inference.upstream.errors handle."""
    try:
        yield
    except (ConnectTimeoutError, NewConnectionError, EmptyPoolError) as error:
        is_timeout = isinstance(error, ConnectTimeoutError) and not isinstance(error, NewConnectionError)
        raise (httpx2.ConnectTimeout if is_timeout else httpx2.ConnectError)("not reached") from error
    except (ReadTimeoutError, TimeoutError) as error:
        raise httpx2.ReadTimeout("no answer in time") from error
    except (HTTPError, OSError) as error:
        raise httpx2.ReadError("broken off") from error

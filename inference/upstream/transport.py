"""Unpack bodies that come in a content coding (RFC 9110, section 8.4.1), a bounded piece at a time.

Providers are asked for `identity`; some compress all the same, and some say so of a body that they did not compress.

Calls over urllib3's connection pool, in place of the SDK's HTTP client: half the CPU, and a read costs no parsing.

What the SDK adds (URLs, headers, errors) stays as it is, so answers and failures are httpx2's.
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

#: The most bytes that one step unpacks.
PIECE = 64 * 1024
#: Codings that may lie over each other; none is known to use more than two.
MOST_CODINGS = 3
GZIP = b"\x1f\x8b"
#: How an answer begins that is not compressed: an object, or a stream of events. No coding makes such bytes.
PLAIN = re.compile(rb"[ \t\r\n]*\{|(?:data|event|id|retry):|: ")

Unpack = Callable[[Iterator[bytes]], Iterator[bytes]]


def unpacked(pieces: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Yield a body without the codings that its Content-Encoding names, in pieces of bounded size.

    A body that is not in its coding, or in an unknown one, is yielded as it is. Raises DecodeError for one that breaks
    off, or is damaged.
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
    """Choose by the label and the first bytes: the label alone is not to be trusted, and "deflate" means two things."""
    if coding in ("gzip", "x-gzip", "deflate"):
        if start.startswith(GZIP) or _is_zlib(start):
            return lambda pieces: _inflated(pieces, zlib.MAX_WBITS + 32)  # either, by its header
        if coding == "deflate" and not PLAIN.match(start):
            return lambda pieces: _inflated(pieces, -zlib.MAX_WBITS)
        return None
    return _unbrotlied if coding == "br" and not PLAIN.match(start) else None


def _is_zlib(start: bytes) -> bool:
    """Return whether bytes begin with zlib's header (RFC 1950, section 2.2)."""
    return len(start) > 1 and start[0] & 0x0F == zlib.DEFLATED and int.from_bytes(start[:2], "big") % 31 == 0


def _inflated(pieces: Iterator[bytes], wbits: int) -> Iterator[bytes]:
    """Yield the bytes of gzip's members, or of zlib's one stream; what follows the end is left out."""
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


#: Idle connections kept for each provider; more are made when needed, and closed after use.
KEPT_CONNECTIONS = 200
#: Providers (scheme, host and port) whose pools are kept.
KEPT_POOLS = 50
#: Headers that say how a body came; it is handed on without its coding.
FRAMING = ("content-encoding", "content-length", "transfer-encoding")
#: Bytes after which others get their turn: what is compressed may unpack to very much at once.
TURN = 1024 * 1024

log = structlog.get_logger(__name__)


class Abort:
    """Ends one request from another thread or greenlet: while its answer is awaited, and while that is read."""

    def __init__(self) -> None:
        self._over = threading.Event()
        #: What the request goes over.
        self.socket: socket.socket | None = None

    @property
    def is_set(self) -> bool:
        """Say whether it has been set."""
        return self._over.is_set()

    def set(self) -> None:
        """Wake whoever waits for the connection: the read that is under way fails, and so does whatever follows."""
        self._over.set()
        self.shut_down()

    def wait(self, seconds: float) -> None:
        """Wait for so many seconds, or until it is set."""
        self._over.wait(seconds)

    def shut_down(self) -> None:
        """End what goes over the connection now; another request may follow over another one."""
        if self.socket is not None:
            with suppress(OSError):
                # Past TLS, whose own shutdown takes its state away under the feet of a read that is under way.
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def limit(self, seconds: float | None) -> None:
        """Let the reads that follow take so many seconds each; None: as long as it is."""
        if self.socket is not None:
            with suppress(OSError):  # it is closed already: all of the answer is there
                self.socket.settimeout(seconds)

    def watch(self, connection: HTTPConnection) -> None:
        """Note over what the request is sent; raises NewConnectionError, as if nobody were there, if it is unwanted."""
        self.socket = connection.sock
        if self.is_set:
            raise NewConnectionError(connection, "not wanted any more")

    def forget(self) -> None:
        """Leave the connection alone from now on: it goes back to its pool, and serves others."""
        self.socket = None


#: What may end the request that this thread or greenlet sends next.
_abort: ContextVar[Abort] = ContextVar("abort")


@contextmanager
def abortable(abort: Abort) -> Iterator[None]:
    """Let the requests that are sent in the block be ended by `abort`."""
    token = _abort.set(abort)
    try:
        yield
    finally:
        _abort.reset(token)


#: Whether the request that this thread or greenlet sends next needs a connection of its own.
_fresh: ContextVar[bool] = ContextVar("fresh", default=False)


#: A connection that had ended before a request says so at once. One that ends later had been at work on it, as far as
#: anybody knows: a proxy that gives up an idle connection after a minute looks the same from here.
ENDED_BEFORE_SECONDS = 2.0


class Unanswered(ProtocolError):
    """A connection that had served others ended before the first byte of this answer: it may have ended before us."""


class _Response(HTTPResponse):
    """A response that tells by Unanswered that nothing of it came."""

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
    #: Whether it answered before, and may have been closed by the other side since.
    has_answered = False
    sent_at = 0.0

    def connect(self) -> None:
        """Connect, by TLS where that is asked for: nothing is sent yet, so whatever fails here has reached nobody."""
        self.has_answered = False
        try:
            super().connect()
        except TimeoutError as error:
            raise ConnectTimeoutError(self, "no connection in time") from error
        except (OSError, ValueError, SSLError) as error:
            raise NewConnectionError(self, type(error).__name__) from error

    def _new_conn(self) -> socket.socket:
        """Connect; a guarded connection is given up before a byte is sent if its name led where it must not."""
        connected = self._connect_to_any()
        if self.is_guarded and is_forbidden_address(str(connected.getpeername()[0])):
            connected.close()
            raise NewConnectionError(self, "the name leads to an address that is not allowed")
        return connected

    def _connect_to_any(self) -> socket.socket:
        """Connect to the first of the name's addresses that lets us; urllib3 gives each of them all of the timeout.

        To look the name up, and what TLS does afterwards, take of the same time.
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
    """A body has more bytes, once it is unpacked, than may be read of it."""


class PooledTransport:
    """Sends requests over pools that the process's threads or greenlets share.

    A guarded one connects to no address that validate_provider_url forbids: it checked the name, which may lead
    elsewhere by now.
    """

    def __init__(self, *, is_guarded: bool = False) -> None:
        self._pools = urllib3.PoolManager(num_pools=KEPT_POOLS, maxsize=KEPT_CONNECTIONS, block=False, retries=False)
        self._pools.pool_classes_by_scheme = (
            {"http": _GuardedPool, "https": _GuardedPoolTLS} if is_guarded else {"http": _Pool, "https": _PoolTLS}
        )

    def open(
        self, method: str, url: str, headers: dict[str, str], content: bytes | None, *, connect: float, read: float
    ) -> httpx2.Response:
        """Send a request and return its response as soon as the headers are there. Timeouts are in seconds."""
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
        """Send a request; once more, over a new connection, if a kept one was closed before any of the answer came."""
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
        """Say whether a new connection to a URL's address can be made; it is closed again."""
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
    """A response's bytes as they arrive, without their content coding.

    Read to its end, the connection goes back to its pool; else it is closed.
    """

    def __init__(self, response: urllib3.BaseHTTPResponse, abort: Abort) -> None:
        self._response = response
        self._abort = abort
        self._reading: ChunkedReading | None = None
        self._encoding = response.headers.get("Content-Encoding", "")
        self._takes: Callable[[bytes], bool] | None = None

    def hand_to(self, takes: Callable[[bytes], bool]) -> None:
        """Let `takes` have bytes where the event loop reads them (see ChunkedReading), unless they are in a coding."""
        if not self._encoding:
            self._takes = takes

    def __iter__(self) -> Iterator[bytes]:
        """Yield bytes as they come, without those that were handed on."""
        with _httpx_errors():
            yield from unpacked(self._pieces(), self._encoding) if self._encoding else self._pieces()

    def read(self, most: int) -> bytes:
        """Read all, and close it; raises TooLargeAnswer if that is more than so many bytes."""
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
        """Read what comes of so many bytes, however it ends, and close it."""
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
        """Close the connection, or give it back to its pool if the body came to its end."""
        response: Any = self._response
        if response.closed:
            self._abort.forget()
            response.release_conn()
            return
        self._abort.shut_down()
        if self._reading is not None:
            self._reading.cancel()
        with suppress(RuntimeError):  # a read is under way elsewhere: it fails now, and closes the connection
            response.close()


def _until(ends: float) -> float:
    """Return the seconds until a moment, at least a millisecond: a timeout of 0 would mean none."""
    return max(0.001, ends - time.monotonic())


@contextmanager
def _httpx_errors() -> Iterator[None]:
    """Raise urllib3's errors as the httpx2 ones that the SDK and inference.upstream.errors know."""
    try:
        yield
    except (ConnectTimeoutError, NewConnectionError, EmptyPoolError) as error:
        is_timeout = isinstance(error, ConnectTimeoutError) and not isinstance(error, NewConnectionError)
        raise (httpx2.ConnectTimeout if is_timeout else httpx2.ConnectError)("not reached") from error
    except (ReadTimeoutError, TimeoutError) as error:
        raise httpx2.ReadTimeout("no answer in time") from error
    except (HTTPError, OSError) as error:
        raise httpx2.ReadError("broken off") from error

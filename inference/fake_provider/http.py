"""The part of HTTP/1.1 that a provider's clients use: an asyncio protocol that reads requests and sends replies.

Supports keep-alive, pipelining, and bodies with a length or in chunks; no TLS, no compression. Written by hand for
benchmarks of the platform: a non-streamed call should cost less than 100 µs.
"""

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple, cast

from inference.fake_provider.answers import Frame
from inference.fake_provider.ledger import Call

MAX_HEAD = 64 * 1024
MAX_BODY = 64 * 1024 * 1024
_PIECE = 16
_LAST_CHUNK = b"0\r\n\r\n"
_REASONS = {status.value: status.phrase for status in HTTPStatus}


class Request(NamedTuple):
    """A request as read from the socket; header names in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class Reply:
    """A response: its content, its pace and its end; times in seconds.

    `status` is 0 if not even a head is sent; `length` is None for a stream (sent in chunks).
    `end` is `complete`, `cut` (the connection is closed early), `reset` (without any byte) or `silence` (the connection
    stays open without further bytes).
    """

    status: int
    frames: Iterator[Frame]
    length: int | None = None
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    latency: float = 0.0
    first_delay: float = 0.0
    interval: float = 0.0
    end: str = "complete"
    call: Call | None = None

    @classmethod
    def whole(cls, status: int, body: bytes, content_type: str = "application/json", tokens: int = 0) -> "Reply":
        """Return a reply with one body, for which `tokens` are billed."""
        return cls(status, iter([(body, tokens)]), len(body), content_type)

    @property
    def at_once(self) -> bool:
        """Return whether the reply needs no pauses and so no task."""
        return not (self.latency or self.first_delay or self.interval or self.end == "silence")

    def head(self) -> bytes:
        """Return status line and headers."""
        framing = "Transfer-Encoding: chunked" if self.length is None else f"Content-Length: {self.length}"
        extra = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        reason = _REASONS.get(self.status, "")
        lines = f"HTTP/1.1 {self.status} {reason}\r\nContent-Type: {self.content_type}\r\n{framing}\r\n"
        return f"{lines}{extra}\r\n".encode("latin-1")

    def framed(self, data: bytes) -> bytes:
        """Return `data` as it is sent, as a chunk if the reply is a stream."""
        return data if self.length is not None else b"%x\r\n%b\r\n" % (len(data), data)

    def slowed(self, interval: float) -> None:
        """Send small pieces with pauses; a non-streamed answer's tokens are billed with its first piece."""
        self.interval = interval
        if self.length is not None:
            self.frames = _pieces(self.frames)


def _pieces(frames: Iterator[Frame]) -> Iterator[Frame]:
    for data, tokens in frames:
        for start in range(0, len(data), _PIECE):
            yield data[start : start + _PIECE], 0 if start else tokens


class _Refused(Exception):
    """The received bytes are not a request that this server accepts; carries the status of the response."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _read_head(data: bytes) -> Request:
    lines = data.decode("latin-1").split("\r\n")
    try:
        method, target, _ = lines[0].split(" ")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
    except ValueError:
        raise _Refused(400) from None
    path, _, query = target.partition("?")
    return Request(method, path, query, headers, b"")


def _take_chunked(buffer: bytearray) -> bytes | None:
    """Remove a chunked body from the buffer and return it; None, with the buffer unchanged, while it is incomplete."""
    body: list[bytes] = []
    position = 0
    while (end := buffer.find(b"\r\n", position)) >= 0:
        try:
            size = int(bytes(buffer[position:end]).split(b";")[0], 16)
        except ValueError:
            raise _Refused(400) from None
        position = end + 2 + size + 2
        if len(buffer) < position:
            return None
        if size == 0:
            del buffer[:position]
            return b"".join(body)
        body.append(bytes(buffer[end + 2 : end + 2 + size]))
    return None


def _take_sized(buffer: bytearray, length: str) -> bytes | None:
    if not length.isdigit():
        raise _Refused(400)
    size = int(length)
    if size > MAX_BODY:
        raise _Refused(413)
    if len(buffer) < size:
        return None
    body = bytes(buffer[:size])
    del buffer[:size]
    return body


class Connection(asyncio.Protocol):
    """One client's connection. Its requests are answered by `handle`, one after the other."""

    def __init__(self, handle: Callable[[Request], Reply], everyone: "set[Connection]") -> None:
        self._handle = handle
        self._everyone = everyone
        self._buffer = bytearray()
        self._head: Request | None = None
        self._playing: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, and send small writes at once."""
        self._transport = cast("asyncio.Transport", transport)
        self._socket: socket.socket = transport.get_extra_info("socket")
        # asyncio sets this only for sockets with a protocol number, which accepted ones lack.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._everyone.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the reply in progress: the client disconnected, or the server closed."""
        self._everyone.discard(self)
        if self._playing is not None:
            self._playing.cancel()

    def pause_writing(self) -> None:
        """Hold further frames until the client has read some."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Continue to send."""
        self._writable.set()

    def close(self) -> None:
        """End the connection now."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Add received bytes, and answer complete requests."""
        self._buffer += data
        self._pump()

    def _pump(self) -> None:
        try:
            while self._playing is None and not self._transport.is_closing() and (request := self._next_request()):
                self._answer(request)
        except _Refused as refused:
            self._answer_at_once(Reply.whole(refused.status, b"{}"))
            self._transport.close()

    def _next_request(self) -> Request | None:
        head = self._head or self._next_head()
        if head is None:
            return None
        if "chunked" in head.headers.get("transfer-encoding", ""):
            body = _take_chunked(self._buffer)
        else:
            body = _take_sized(self._buffer, head.headers.get("content-length", "0"))
        self._head = head if body is None else None
        return None if body is None else head._replace(body=body)

    def _next_head(self) -> Request | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD:
                raise _Refused(431)
            return None
        head = _read_head(bytes(self._buffer[:end]))
        del self._buffer[: end + 4]
        if head.headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return head

    def _answer(self, request: Request) -> None:
        reply = self._handle(request)
        closing = request.headers.get("connection", "").lower() == "close"
        if reply.at_once:
            self._answer_at_once(reply)
            if closing:
                self._transport.close()
        else:
            self._playing = asyncio.get_running_loop().create_task(self._play(reply, closing))

    def _answer_at_once(self, reply: Reply) -> None:
        data = [reply.head()] if reply.status else []
        for frame, tokens in reply.frames:
            data.append(reply.framed(frame))
            _bill(reply, tokens)
        if reply.length is None and reply.end == "complete":
            data.append(_LAST_CHUNK)
        # Billed before the write, so that a client with the answer finds it in the ledger.
        _close_call(reply)
        self._transport.write(b"".join(data))
        self._end(reply)

    async def _play(self, reply: Reply, closing: bool) -> None:
        """Send a reply with its pauses; cancelled when the client disconnects."""
        try:
            await self._send_paced(reply)
        except asyncio.CancelledError:
            if reply.call is not None:
                reply.call.end("client_left")
            return
        self._end(reply)
        self._playing = None
        if closing:
            self._transport.close()
        self._pump()

    async def _send_paced(self, reply: Reply) -> None:
        await asyncio.sleep(reply.latency)
        if reply.status:
            self._transport.write(reply.head())
        pause = reply.first_delay
        for frame, tokens in reply.frames:
            if pause:
                await asyncio.sleep(pause)
            await self._writable.wait()
            _bill(reply, tokens)
            self._transport.write(reply.framed(frame))
            pause = reply.interval
        if reply.end == "silence":
            await asyncio.Event().wait()
        _close_call(reply)
        if reply.length is None and reply.end == "complete":
            self._transport.write(_LAST_CHUNK)

    def _end(self, reply: Reply) -> None:
        """Close the connection if the reply's end requires it."""
        if reply.end == "cut":
            self._transport.close()
        elif reply.end == "reset":
            # A linger of 0 makes the kernel send RST instead of FIN.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()


def _bill(reply: Reply, tokens: int) -> None:
    if reply.call is not None:
        reply.call.completion_tokens += tokens


def _close_call(reply: Reply) -> None:
    if reply.call is not None:
        reply.call.end("failed" if reply.end == "reset" else reply.end)

"""A small HTTP/1.1 server in a thread: keep-alive, pipelining, bodies with a length or in chunks; no TLS.

Its replies may be slow, break off, fall silent or reset the connection, and are billed as they are sent.
"""

import asyncio
import json
import logging
import socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NamedTuple, Self

from inference.fake_provider.formats import Frame

MAX_HEAD, MAX_BODY = 64 * 1024, 64 * 1024 * 1024
#: Bytes of each piece of a plain answer that trickles.
PIECE = 16
BACKLOG = 4096
ACCEPT_PAUSE, START_SECONDS = 0.05, 10.0

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class FakeCall:
    """A call to a model and the tokens billed for it; times are monotonic seconds, `ended_at` is None while it runs.

    `outcome` is `running`, `complete`, `cut` (by a fault), `client_left` or `failed` (nothing billed).
    """

    id: str
    path: str
    model: str
    stream: bool
    fault: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    completion_tokens: int = 0
    outcome: str = "running"
    started_at: float = field(default_factory=time.monotonic)
    ended_at: float | None = None

    def end(self, outcome: str) -> None:
        """End the call with an outcome; only the first end counts."""
        if self.ended_at is None:
            self.outcome = outcome
            self.ended_at = time.monotonic()


class Request(NamedTuple):
    """A received request; header names in lower case, `body` parsed if it was JSON, otherwise None."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: Any


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
    call: FakeCall | None = None

    @classmethod
    def whole(cls, status: int, body: bytes, content_type: str = "application/json", tokens: int = 0) -> "Reply":
        """Return a reply with one body, for which `tokens` are billed."""
        return cls(status, iter([(body, tokens)]), len(body), content_type)

    @classmethod
    def of_json(cls, status: int, body: Any) -> "Reply":
        """Return a JSON reply."""
        return cls.whole(status, json.dumps(body).encode())

    def slow_down(self, interval: float) -> None:
        """Send small pieces with pauses; a plain answer's tokens are billed with its first piece."""
        self.interval = interval
        if self.length is not None:
            (body, tokens), *_ = self.frames
            starts = range(0, len(body), PIECE)
            self.frames = ((body[start : start + PIECE], 0 if start else tokens) for start in starts)

    async def send(self, writer: asyncio.StreamWriter) -> None:
        """Send the reply with its pauses. All is billed before it is sent, so that who has it finds it billed."""
        if self.latency:
            await asyncio.sleep(self.latency)
        waiting: list[bytes] = []
        if self.status:
            framing = "Transfer-Encoding: chunked" if self.length is None else f"Content-Length: {self.length}"
            extra = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
            first = f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}\r\nContent-Type: {self.content_type}"
            waiting.append(f"{first}\r\n{framing}\r\n{extra}\r\n".encode("latin-1"))
        pause = self.first_delay
        for frame, tokens in self.frames:
            if pause:
                writer.write(b"".join(waiting))
                waiting.clear()
                await asyncio.sleep(pause)
                await writer.drain()
            if self.call is not None:
                self.call.completion_tokens += tokens
            waiting.append(frame if self.length is not None else b"%x\r\n%b\r\n" % (len(frame), frame))
            pause = self.interval
        if self.end == "silence":
            writer.write(b"".join(waiting))
            await asyncio.Event().wait()
        if self.call is not None:
            self.call.end("failed" if self.end == "reset" else self.end)
        if self.length is None and self.end == "complete":
            waiting.append(b"0\r\n\r\n")
        writer.write(b"".join(waiting))
        if self.end == "reset":
            # A linger of 0 makes the kernel send RST instead of FIN.
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()


async def read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    """Read the next request.

    Raises ValueError or LimitOverrunError for what is no request, IncompleteReadError at the end of the connection.
    """
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if "chunked" in headers.get("transfer-encoding", ""):
        content = b""
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            content += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    else:
        size = int(headers.get("content-length", "0"))
        if size > MAX_BODY:
            raise ValueError("too large a body")
        content = await reader.readexactly(size)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    path, _, query = target.partition("?")
    return Request(method, path, query, headers, body)


class Connection(asyncio.StreamReaderProtocol):
    """One client's connection: a task answers its requests one after the other, until either side closes it."""

    def __init__(self, server: "HttpServer") -> None:
        super().__init__(asyncio.StreamReader(limit=MAX_HEAD), self._begin)
        self._server = server

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server.connections[self] = writer
        self._serving = asyncio.create_task(self._serve(reader, writer))

    def eof_received(self) -> bool:
        """Close the connection: a client that sends no more has left."""
        super().eof_received()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the reply in progress: the client disconnected, or the server closed."""
        super().connection_lost(exc)
        self._server.connections.pop(self, None)
        self._serving.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reply, request = None, None
        try:
            while request is None or request.headers.get("connection", "").lower() != "close":
                request = await read_request(reader, writer)
                reply = self._server.answer(request)
                await reply.send(writer)
                if reply.end != "complete":
                    break
        except (ValueError, asyncio.LimitOverrunError):
            await Reply.of_json(400, {}).send(writer)
        except (asyncio.CancelledError, asyncio.IncompleteReadError, ConnectionError):
            if reply is not None and reply.call is not None:
                reply.call.end("client_left")
        finally:
            writer.close()


class HttpServer(ABC):
    """Serves in a thread of its own. Use it as a context manager, or call `start` and `stop`, from any thread."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.connections: dict[Connection, asyncio.StreamWriter] = {}
        self._accepting: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake-provider", daemon=True)

    @abstractmethod
    def answer(self, request: Request) -> Reply:
        """Return the reply to a request; runs in the server's thread."""

    def start(self) -> Self:
        """Start to listen; raises OSError if the port is taken."""
        self._bind()
        self._thread.start()
        self.listen()
        return self

    def stop(self) -> None:
        """Close the socket and all connections, and end the thread."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_SECONDS)
        self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def refuse(self) -> None:
        """Close the listening socket and every connection, but keep the port."""
        self._run(self._refuse())

    def listen(self) -> None:
        """Listen again after `refuse`."""
        self._run(self._listen())

    async def refuse_for(self, seconds: float) -> None:
        """Refuse connections for a while, once the current request is answered; runs in the server's thread."""
        await asyncio.sleep(0.01)
        await self._refuse()
        await asyncio.sleep(seconds)
        await self._listen()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(START_SECONDS)

    def _bind(self) -> None:
        """Bind the port without listening: connections are refused, but no other process can take it."""
        # With the protocol's number, which accepted sockets inherit, asyncio sends small writes at once.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((self.host, self.port))
        except OSError:
            self._socket.close()
            raise
        self.port = self._socket.getsockname()[1]

    async def _listen(self) -> None:
        if self._accepting is None:
            self._socket.listen(BACKLOG)
            self._accepting = asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        # Not asyncio's own server: closing it leaks a connection that it accepts at the same time.
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._socket)
            except OSError:  # too many open files, or a client that disconnected at once: go on serving the others
                logger.warning("the fake provider could not accept a connection", exc_info=True)
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            await loop.connect_accepted_socket(lambda: Connection(self), accepted)

    async def _refuse(self) -> None:
        await self._close()
        self._bind()

    async def _close(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
            self._accepting = None
        self._socket.close()
        for writer in list(self.connections.values()):
            writer.transport.abort()
        await asyncio.sleep(0.01)  # aborted connections end their calls in the next turns of the event loop

"""A model call that is answered as a stream: the pipeline's stages, in a greenlet of their own.

The producer routes, reads the provider's stream and settles in a `finally` that always runs. The consumer, in the
request's own greenlet, writes what comes, keeps the connection alive while nothing does, and watches the client's
socket: when the client leaves, the provider's stream is closed within a second, and what was generated is billed.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import structlog
from django.conf import settings
from django.db import connections

from accounts.exceptions import ApiError, InternalError, UpstreamFailed, UpstreamTimeout
from accounts.limits.leases import keeper
from inference import cache
from inference.calls import Caller, ModelCall
from inference.pipeline import (
    Progress,
    begin,
    begin_attempt,
    emit_shared,
    find_shared,
    leave_flight,
    outgoing,
    release_connections,
    reserve,
    share_answer,
)
from inference.surfaces.base import Usage
from inference.surfaces.events import BrokenStream, EventReader
from inference.upstream.attempts import AttemptFailed, Deadline
from inference.upstream.capacity import capacity
from inference.upstream.client import UpstreamStream, client
from inference.upstream.routing import first_success

#: Seconds that status and headers wait for the provider's first byte, so that an early failure is a plain error.
FIRST_BYTE_SECONDS = 10.0
#: Seconds between two looks at the client's socket while nothing comes.
WATCH_SECONDS = 0.5
KEEP_ALIVE_SECONDS = 15.0
KEEP_ALIVE = b": keep-alive\n\n"
#: Pieces that wait for a slow client before the provider's stream is read on.
LONGEST_QUEUE = 256
CLIENT_LEFT = 499  # nginx's status for it; nobody is there to see it but the log

log = structlog.get_logger(__name__)


class StreamedCall:
    """One streamed call. `open` it, then iterate over it once; `close` ends it early.

    `make_reader` makes what follows the provider's stream (True: it is replayed from the cache), `error_event` the
    bytes that tell the client of an error in mid-stream, and `is_gone` looks whether the client has left. With `keep`,
    which gets all that was written (None if it broke off), the call runs to its end even if the client leaves.
    """

    def __init__(
        self,
        call: ModelCall,
        caller: Caller,
        *,
        make_reader: Callable[[bool], EventReader],
        error_event: Callable[[ApiError], bytes],
        is_gone: Callable[[], bool],
        keep: Callable[[bytes | None], None] | None = None,
    ) -> None:
        self.call = call
        self.caller = caller
        self._make_reader = make_reader
        self.progress: Progress | None = None
        self._error_event = error_event
        self._is_gone = is_gone
        self._keep = keep
        self._kept: list[bytes] = []
        self._pieces: queue.Queue[bytes | None] = queue.Queue(LONGEST_QUEUE)
        self._started = threading.Event()
        self._headers_lock = threading.Lock()
        self._headers_sent = False
        self._failure: ApiError | None = None
        self._is_abandoned = False
        self._stream: UpstreamStream | None = None

    def open(self) -> Progress:
        """Do what comes before the provider's first byte; raises the ApiError of anything that fails until then."""
        progress = self.progress = begin(self.call, self.caller)
        shared = find_shared(progress)
        if shared is not None:
            emit_shared(progress, shared)
            self._replay(shared)
            return progress
        try:
            reserve(progress)
        except ApiError as error:
            leave_flight(progress, error=error)
            raise
        release_connections()
        threading.Thread(target=self._produce, name="stream", daemon=True).start()
        self._started.wait(FIRST_BYTE_SECONDS)
        with self._headers_lock:
            if self._failure is not None:
                raise self._failure
            self._headers_sent = True
        return progress

    def __iter__(self) -> Iterator[bytes]:
        """Yield what the client gets, until the end of the stream or until the client is gone."""
        last = time.monotonic()
        try:
            while True:
                try:
                    piece = self._pieces.get(timeout=WATCH_SECONDS)
                except queue.Empty:
                    if self._is_gone():
                        return
                    if time.monotonic() - last < KEEP_ALIVE_SECONDS:
                        continue
                    piece = KEEP_ALIVE
                if piece is None:
                    return
                last = time.monotonic()
                yield piece
        finally:
            self.close()

    def close(self) -> None:
        """Stop the provider's stream if nobody else waits for it; after its end this does nothing."""
        flight = self.progress.flight if self.progress else None
        if self._keep is not None or (flight is not None and flight.followers):
            self._drain()
            return
        self._is_abandoned = True
        stream = self._stream
        if stream is not None:
            stream.close()

    def _drain(self) -> None:
        """Let the producer go on for those who wait for its answer, with nobody to write to."""
        self._is_gone = lambda: False
        self._pieces = queue.Queue()

    def _replay(self, shared: cache.CachedAnswer) -> None:
        reader = self._make_reader(True)
        self._put(reader.feed(shared.body["stream"].encode()))
        self._end(None)

    def _produce(self) -> None:
        """Run the call to its end, whatever that is, and settle it."""
        progress = self.progress
        assert progress is not None  # noqa: S101  (open sets it first)
        reader = self._make_reader(False)
        error: ApiError | None = InternalError()  # what it is if something comes that nobody expected
        try:
            self._relay(progress, reader)
            error = None
        except ApiError as failure:
            error = failure
        except Exception as failure:
            log.exception("stream_failed", cause=type(failure).__name__)
        finally:
            self._settle(progress, reader, error)
            self._end(error)
            connections.close_all()

    def _relay(self, progress: Progress, reader: EventReader) -> None:
        caller = progress.caller
        deadline = Deadline(settings.UPSTREAM_STREAM_TIMEOUT)
        with (
            keeper.held(caller.identity.account_id, caller.trace.id.hex),
            capacity().place(settings.UPSTREAM_QUEUE_SECONDS),
        ):
            stream = self._stream = self._connect(progress)
            try:
                self._pass_on(stream, reader, deadline)
            finally:
                stream.close()

    def _connect(self, progress: Progress) -> UpstreamStream:
        """Open a stream at the first deployment that sends one, and note when its first byte came."""
        deadline = Deadline(settings.UPSTREAM_TIMEOUT)
        with progress.caller.trace.stage("upstream"):
            try:
                stream = first_success(
                    progress.model.routes,
                    lambda route: self._attempt(progress, route, deadline),
                    deadline,
                    covers_another=progress.bill.covers_another,
                )
            except AttemptFailed as failure:
                raise failure.error from failure
        progress.bill.record["first_token_ms"] = round(progress.caller.trace.elapsed_ms, 3)
        return stream

    def _attempt(self, progress: Progress, route: Any, deadline: Deadline) -> UpstreamStream:
        begin_attempt(progress, route)
        surface = self.call.surface
        payload = surface.as_stream(outgoing(progress, route))
        try:
            return client.open_stream(
                route, surface.path, payload, seconds=deadline.left, idle_seconds=settings.UPSTREAM_IDLE_TIMEOUT
            )
        except AttemptFailed as failure:
            if failure.verdict.may_be_billed:
                progress.bill.charge_bound()
            raise

    def _pass_on(self, stream: UpstreamStream, reader: EventReader, deadline: Deadline) -> None:
        """Hand over what comes. Raises UpstreamFailed or UpstreamTimeout for a stream that breaks off."""
        try:
            self._put(reader.feed(stream.first))
            self._started.set()
            for data in stream:
                if self._is_abandoned:
                    return
                self._put(reader.feed(data))
                if deadline.is_over:
                    raise UpstreamTimeout
        except AttemptFailed as failure:
            if not self._is_abandoned:
                raise failure.error from failure
        except BrokenStream as failure:
            log.warning("upstream_failed", route=stream.route.name, cause=f"stream: {failure}", status=502)
            raise UpstreamFailed from failure
        if not reader.is_done and not self._is_abandoned:
            log.warning("upstream_failed", route=stream.route.name, cause="stream without end", status=502)
            raise UpstreamFailed

    def _put(self, piece: bytes | None) -> None:
        """Hand a piece to the consumer, waiting while it is slow, unless it is gone."""
        if self._keep is not None and piece:
            self._kept.append(piece)
        while piece != b"":
            try:
                self._pieces.put(piece, timeout=WATCH_SECONDS)
            except queue.Full:
                if not self._is_abandoned:
                    continue
            return

    def _settle(self, progress: Progress, reader: EventReader, error: ApiError | None) -> None:
        """Bill what came, share a whole answer, and record how it ended."""
        left = self._is_abandoned and not reader.is_done
        usage = self._charge(progress, reader) if self._stream is not None else None
        if usage is not None and error is None and not left:
            body = {"stream": reader.text.decode("utf-8", "replace")}
            route = self._stream.route.name if self._stream else ""
            answer = cache.CachedAnswer(body, usage.input_tokens, usage.cached_tokens, usage.output_tokens, route)
            share_answer(progress, answer)
        leave_flight(progress, error=error)
        status, code = (error.status, error.error_code) if error else (200, "")
        if left:
            status, code = CLIENT_LEFT, "client_left"
        progress.bill.settle(status=status, error_code=code, partial=self._stream is not None and not reader.is_done)

    def _charge(self, progress: Progress, reader: EventReader) -> Usage:
        """Charge the usage that the provider sent, or a count of what came until the stream broke off."""
        route = self._stream.route if self._stream else progress.model.routes[0]
        usage, source = reader.usage, "provider"
        if usage is None:
            body = reader.body()
            usage, source = self.call.surface.estimate(self.call.payload, body, model=route.upstream_name), "estimated"
        progress.bill.charge(usage, route.rates, source=source)
        return usage

    def _end(self, error: ApiError | None) -> None:
        """Tell the consumer how it ended: before the first byte as a plain error, after it as an event."""
        with self._headers_lock:
            is_plain = error is not None and not self._started.is_set() and not self._headers_sent
            self._failure = error if is_plain else None
        if error is not None and not is_plain:
            self._put(self._error_event(error))
        if self._keep is not None and not is_plain:
            self._keep(b"".join(self._kept) if error is None else None)
        self._put(None)
        self._started.set()

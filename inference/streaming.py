"""A model call whose answer is streamed: the pipeline's stages, in a greenlet of their own.

The producer joins a flight or routes the call, reads the provider's stream, and settles in a `finally` that always
runs. The consumer, in the request's greenlet, writes the pieces to the client, keeps the connection alive while there
are none, and watches the client's socket. If the client disconnects, the provider's stream is closed within a second
and the output generated until then is billed.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import structlog
from django.conf import settings
from django.db import DatabaseError, connections

from accounts.idempotency import LARGEST_ANSWER
from accounts.limits.leases import keeper
from core.database import release_connections
from core.errors import ApiError, DependencyUnavailable, InternalError, UpstreamFailed, UpstreamTimeout
from inference import cache
from inference.calls import Caller, ModelCall
from inference.catalog import Route
from inference.client_socket import ClientSocket
from inference.disconnects import CLIENT_LEFT, ClientLeft
from inference.open_streams import open_streams
from inference.outlet import Outlet, Transcript, watch
from inference.pipeline import (
    Progress,
    begin,
    begin_attempt,
    charge_failure,
    emit_shared,
    find_cached,
    is_awaited,
    join_flight,
    leave_flight,
    outgoing,
    place,
    provider_failed,
    reserve,
    share_answer,
    shared_answer,
    slot_size,
)
from inference.protocols.base import Usage
from inference.protocols.events import EventReader
from inference.protocols.sse import BrokenStream
from inference.upstream.client import UpstreamStream, client, hidden_texts
from inference.upstream.errors import AttemptFailed, Deadline, failed_attempt
from inference.upstream.provider_limits import Slot, take_slot
from inference.upstream.routing import first_success
from inference.upstream.transport import Abort

#: Seconds to keep reading a provider's stream after its end or an error: the usage may follow.
LAST_WORDS_SECONDS = 1.0
#: Value of `_waits_since` while the call is not waiting for the provider.
NEVER = float("inf")

log = structlog.get_logger(__name__)


class StreamedCall:
    """One streamed call. `open` it, then iterate over it once; `close` ends it early.

    `make_reader` returns the reader of the provider's stream; its argument is true if the stream is replayed from the
    cache. `error_event` returns the bytes that report an error to the client after the stream has begun. `keep`
    receives everything that was written (None if the stream broke off) and the settled call; with it, the call runs to
    its end even if the client disconnects.
    """

    def __init__(
        self,
        call: ModelCall,
        caller: Caller,
        *,
        make_reader: Callable[[bool], EventReader],
        error_event: Callable[[ApiError, EventReader], bytes],
        client: ClientSocket,
        keep: Callable[[bytes | None, Progress], None] | None = None,
    ) -> None:
        self.call = call
        self.caller = caller
        self._make_reader = make_reader
        self._reader = make_reader(False)
        self.progress: Progress | None = None
        self._error_event = error_event
        self._outlet = Outlet(client)
        self._keep = keep
        self._kept = Transcript(LARGEST_ANSWER)
        self._deadline = Deadline(settings.UPSTREAM_STREAM_TIMEOUT)
        self._headers_lock = threading.Lock()
        self._headers_sent = False
        self._failure: ApiError | None = None
        self._is_abandoned = False
        self._stop: ApiError | None = None
        self._abort = Abort()
        self._stream: UpstreamStream | None = None
        self._waits_since = NEVER
        self._is_silent = False
        self._billed_by: Route | None = None
        self._slot: Slot | None = None

    def open(self) -> Progress:
        """Start the call and wait for the first byte, at most STREAM_FIRST_BYTE_SECONDS.

        Raises the ApiError of a failure before that.
        """
        progress = self.progress = begin(self.call, self.caller, self._deadline)
        cached = find_cached(progress)
        if cached is not None:
            emit_shared(progress, cached)
            self._replay(cached)
            self._end(None)
            return progress
        release_connections()
        watch.add(self)
        produce = contextvars.copy_context().run
        threading.Thread(target=produce, args=[self._produce], name="stream", daemon=True).start()
        self._outlet.wait(settings.STREAM_FIRST_BYTE_SECONDS)
        with self._headers_lock:
            if self._failure is not None:
                raise self._failure
            self._headers_sent = True
        return progress

    def __iter__(self) -> Iterator[bytes]:
        """Yield the client's bytes until the stream ends or the client disconnects."""
        try:
            yield from self._outlet
        finally:
            self.close()

    def close(self) -> None:
        """Stop the provider's stream unless other calls wait for it; does nothing after its end."""
        self._outlet.leave()
        if self._keep is None and not (self.progress is not None and is_awaited(self.progress)):
            self._is_abandoned = True
            self._break_off()

    def look(self, now: float) -> None:
        """Close the stream if the client has disconnected, and break it off if the provider is silent for too long."""
        if self._outlet.has_lost_its_reader(now):
            self.close()
        longest = LAST_WORDS_SECONDS if self._reader.is_over else settings.UPSTREAM_IDLE_TIMEOUT
        if self._stream is not None and now - self._waits_since > longest:
            self._is_silent = True
            self._break_off()

    def stop(self, error: ApiError) -> None:
        """End the call with an error because the process shuts down; output generated until then is billed."""
        self._stop = error
        self._break_off()

    def _break_off(self) -> None:
        """Wake the producer if it waits for the provider."""
        stream = self._stream
        if stream is not None:
            stream.close()
        else:
            self._abort.set()

    def _replay(self, shared: cache.CachedAnswer) -> None:
        reader = self._make_reader(True)
        self._write(reader.feed(shared.body["stream"].encode()))

    def _produce(self) -> None:
        """Run the call to its end, with or without an error, and settle it."""
        progress = self.progress
        assert progress is not None  # noqa: S101  (open sets it first)
        open_streams.add(self)
        error: ApiError | None = InternalError()  # for an unexpected exception
        try:
            self._answer(progress, self._reader)
            error = None
        except ClientLeft:
            error = None
        except ApiError as failure:
            error = failure
        except DatabaseError as failure:
            log.error("database_failed", cause=type(failure).__name__)
            error = DependencyUnavailable()
        except Exception as failure:
            log.exception("stream_failed", cause=type(failure).__name__)
        finally:
            try:
                self._settle(progress, self._reader, error)
            except Exception as failure:  # the consumer must still get the end of the stream
                log.exception("stream_not_settled", cause=type(failure).__name__)
            finally:
                if self._slot is not None:
                    self._slot.settle()
                leave_flight(progress)
                self._end(error)
                connections.close_all()
                watch.discard(self)
                open_streams.discard(self)

    def _answer(self, progress: Progress, reader: EventReader) -> None:
        """Replay the answer of an identical call, or make a call to a provider."""
        shared = join_flight(progress, is_unwanted=self._is_unwanted)
        if shared is not None:
            emit_shared(progress, shared)
            self._replay(shared)
            return
        self._refuse_if_unwanted()
        first_byte = Deadline(min(settings.UPSTREAM_TIMEOUT, self._deadline.left))
        reserve(progress)
        release_connections()
        caller = progress.caller
        with (
            keeper.held(progress.bill.limits.shard, caller.trace.id.hex),
            place(progress.bill, first_byte),
        ):
            stream = self._connect(progress, first_byte)
            self._waits_since, self._stream = time.monotonic(), stream
            try:
                self._pass_on(stream, reader)
            except ApiError as error:
                if error is not self._stop:
                    provider_failed(progress, error)
                raise
            finally:
                self._stream = None
                stream.close()

    def _is_unwanted(self) -> bool:
        return self._is_abandoned or self._stop is not None

    def _refuse_if_unwanted(self) -> None:
        if self._stop is not None:
            raise self._stop
        if self._is_abandoned:
            raise ClientLeft

    def _connect(self, progress: Progress, deadline: Deadline) -> UpstreamStream:
        """Open a stream at the first deployment that sends one, and note the time to its first byte."""
        with progress.caller.trace.stage("upstream"):
            try:
                stream = first_success(
                    progress.routes,
                    lambda route: self._attempt(progress, route, deadline),
                    deadline,
                    account_id=progress.caller.identity.account_id,
                    covers_another=progress.bill.covers_another,
                    rest=self._abort.wait,
                    note=progress.bill.note,
                )
            except AttemptFailed as failure:
                raise provider_failed(progress, failure.error) from failure
        progress.bill.record["first_token_ms"] = round(progress.caller.trace.elapsed_ms, 3)
        self._billed_by = stream.route
        return stream

    def _attempt(self, progress: Progress, route: Route, deadline: Deadline) -> UpstreamStream:
        self._refuse_if_unwanted()
        slot = self._slot = take_slot(route, *slot_size(progress))
        begin_attempt(progress, route)
        protocol = self.call.protocol
        payload = protocol.as_stream(outgoing(progress, route))
        try:
            return client.open_stream(
                route, protocol.path, payload, seconds=deadline.left, opens=protocol.opens_stream, abort=self._abort
            )
        except AttemptFailed as failure:
            slot.settle(failure.tokens)
            if failure.usage is None and self._is_unwanted():
                self._billed_by = route if failure.verdict.may_be_billed else None
                self._refuse_if_unwanted()
            charge_failure(progress, failure, route)
            raise

    def _pass_on(self, stream: UpstreamStream, reader: EventReader) -> None:
        """Pass the provider's stream to the client.

        Raises UpstreamFailed or UpstreamTimeout if the stream breaks off, or the error that the provider reports in it.
        """
        try:
            self._write(reader.feed(stream.first))
            if self._outlet.can_send:
                stream.hand_to(partial(self._relay, reader))
            self._read_on(stream, reader)
            self._write(reader.finish())
        except BrokenStream as failure:
            self._write(failure.before)
            self._broke_off(stream, f"stream: {failure}")
            raise UpstreamFailed from failure
        except AttemptFailed as failure:
            self._go_on(reader)
            if not reader.is_over:  # failures after the end don't matter
                self._note_failure(stream.route, failure.cause)
                raise failure.error from failure
        if reader.error is not None:
            failed = failed_attempt(reader.error, route=stream.route.name, hidden=hidden_texts(stream.route))
            self._note_failure(stream.route, failed.cause)
            raise failed.error
        if not reader.is_done:
            self._broke_off(stream, "stream without end")
            raise UpstreamFailed

    def _read_on(self, stream: UpstreamStream, reader: EventReader) -> None:
        """Pass on the stream after its first event, to its end or to the usage that follows an error."""
        pieces = iter(stream)
        while not reader.needs_no_more and (data := next(pieces, None)) is not None:
            self._waits_since = NEVER
            self._write(reader.feed(data))
            self._waits_since = time.monotonic()
            self._go_on(reader)
        self._go_on(reader)

    def _relay(self, reader: EventReader, data: bytes) -> bool:
        """Write text events to an idle client directly from the event loop; False if the producer must handle them."""
        now = time.monotonic()
        is_over = self._is_abandoned or self._stop is not None or self._is_silent or now >= self._deadline.ends
        piece = reader.pass_on(data) if self._outlet.is_idle and not is_over else b""
        if piece:
            self._put(piece)
            self._waits_since = now
        return bool(piece)

    def _broke_off(self, stream: UpstreamStream, cause: str) -> None:
        log.warning("upstream_failed", route=stream.route.name, cause=cause, status=502)
        self._note_failure(stream.route, cause)

    def _note_failure(self, route: Route, cause: str) -> None:
        if self.progress is not None:
            self.progress.bill.note_failure(route.name, cause)

    def _go_on(self, reader: EventReader) -> None:
        """Raise the reason to stop, if there is one and the stream has not ended."""
        if not reader.is_over:
            self._refuse_if_unwanted()
            if self._is_silent or self._waits_since >= self._deadline.ends:
                raise UpstreamTimeout

    def _write(self, piece: bytes) -> None:
        """Pass a piece to the consumer. After the first one the headers may be sent."""
        if piece:
            self._put(piece)
            if not self._outlet.started.is_set():
                self._outlet.started.set()

    def _put(self, piece: bytes) -> None:
        """Pass a piece to the consumer, and wait while it is slow unless the client has disconnected."""
        if self._keep is not None:
            self._kept.add(piece)
        self._outlet.put(piece, gives_up=self._gives_up)

    def _gives_up(self) -> bool:
        """Return whether to stop waiting for a client that does not read.

        That is so past the deadline, at shutdown, and after a disconnect.
        """
        if self._deadline.is_over or self._stop is not None:
            self._is_abandoned = self._keep is None
            return True
        return self._is_abandoned

    def _settle(self, progress: Progress, reader: EventReader, error: ApiError | None) -> None:
        """Charge the output received, share a complete answer, and record the outcome."""
        is_done = reader.is_done
        status, code = (error.status, error.error_code) if error else (200, "")
        if self._is_abandoned and not is_done and not progress.caller.trace.is_recorded:
            status, code = CLIENT_LEFT, "client_left"
        if not progress.bill.has_reserved:
            if status == CLIENT_LEFT:
                progress.bill.emit(status=status, error_code=code)
            return
        progress.bill.followed(reader)
        usage = self._charge(progress, reader, self._billed_by) if self._billed_by else None
        if usage is not None and status == 200:
            body = {"stream": reader.text.decode("utf-8", "replace")}
            answer = shared_answer(progress.bill, body, usage, progress.bill.record["deployment"])
            share_answer(progress, answer, reader.body)
        progress.bill.settle(status=status, error_code=code, partial=usage is not None and not is_done)

    def _charge(self, progress: Progress, reader: EventReader, route: Route) -> Usage | None:
        """Charge the usage that the provider reported, or an estimate from the output received.

        Charges nothing and returns None if the provider reported a failure before it generated anything.
        """
        if reader.is_free:
            if self._slot is not None:
                self._slot.settle(0)
            return None
        estimate = partial(self.call.protocol.estimate, self.call.payload, model=route.upstream_name)
        usage, source = reader.billed_usage(estimate)
        if self._slot is not None:
            self._slot.settle(usage.input_tokens + usage.output_tokens)
        progress.bill.charge(usage, route.rates, source=source)
        return usage

    def _end(self, error: ApiError | None) -> None:
        """Pass the outcome to the consumer: an error before the first byte as a plain one, after it as an event."""
        with self._headers_lock:
            is_plain = error is not None and not self._outlet.started.is_set() and not self._headers_sent
            self._failure = error if is_plain else None
        try:
            if error is not None and not is_plain:
                self._put(self._error_event(error, self._reader))
                self._record_late(error)
            if self._keep is not None and self.progress is not None and not is_plain:
                self._keep(self._kept.content if error is None else None, self.progress)
        finally:
            self._outlet.end()

    def _record_late(self, error: ApiError) -> None:
        """Record an error that came after the headers were sent; the view records earlier ones."""
        progress = self.progress
        if progress is not None and not progress.caller.trace.is_recorded:
            progress.bill.emit(status=error.status, error_code=error.error_code)

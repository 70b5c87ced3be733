"""A model call whose answer is streamed: the pipeline's stages, in a greenlet of their own.

The producer joins a flight or routes the call, reads the provider's stream, and settles in a `finally` that always
runs. The consumer, in the request's greenlet, writes the pieces to the client, keeps the connection alive while there
are none, and watches the client's socket. If the client disconnects, the provider's stream is closed within a second
and the output generated until then is billed.
"""

from __future__ import annotations

import _thread
import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import structlog
from django.conf import settings
from django.db import DatabaseError, connections

from accounts.idempotency import LARGEST_ANSWER
from core.database import release_connections
from core.errors import ApiError, DependencyUnavailable, InternalError, UpstreamFailed, UpstreamTimeout
from inference.call import Call
from inference.catalog import Route
from inference.clients import ClientLeft, open_streams, watch
from inference.pipeline import complete, is_awaited, refuse_if_interrupted
from inference.protocols.events import BrokenStream, EventReader
from inference.relay import ClientSocket, Outlet, Transcript
from inference.upstream.client import UpstreamStream, upstream
from inference.upstream.errors import AttemptFailed, Deadline, failed_attempt
from inference.upstream.provider_limits import ProviderSlot, process_slot, take_slot
from inference.upstream.routing import with_fallback
from inference.upstream.transport import Abort

#: Seconds to keep reading a provider's stream after its end or an error: the usage may follow.
LAST_WORDS_SECONDS = 1.0
#: Value of `_waits_since` while the call is not waiting for the provider.
NEVER = float("inf")

log = structlog.get_logger(__name__)


class Stream:
    """The stream of one call. `open` it, then iterate over it once; `close` ends it early.

    `make_reader` returns the reader of the provider's stream; its argument is true if the stream is replayed from the
    cache. `error_event` returns the bytes that report an error to the client after the stream has begun. `keep`
    receives everything that was written (None if the stream broke off), once the call is settled; with it, the call
    runs to its end even if the client disconnects.

    Attributes are grouped by the greenlet that sets them. While the producer waits for the provider, the event loop
    works in its place (`_relay`).
    """

    def __init__(
        self,
        call: Call,
        *,
        make_reader: Callable[[bool], EventReader],
        error_event: Callable[[ApiError, EventReader], bytes],
        client: ClientSocket,
        keep: Callable[[bytes | None], None] | None = None,
    ) -> None:
        self.call = call
        self._make_reader = make_reader
        self._error_event = error_event
        self._keep = keep
        self._outlet = Outlet(client)  # from the producer to the consumer
        self._longest_silence: float = settings.UPSTREAM_IDLE_TIMEOUT  # kept: the watch needs it often
        # Set by the producer. The watch also reads `_waits_since` and the reader's state; whoever ends the stream early
        # closes `_stream`.
        self._reader = make_reader(False)
        self._kept = Transcript(LARGEST_ANSWER)
        self._stream: UpstreamStream | None = None
        self._waits_since = NEVER
        self._billed_by: Route | None = None
        self._slot: ProviderSlot | None = None
        # Under the lock: `_headers_sent` is set by the consumer, `_failure` by the producer if that comes first.
        self._headers_lock = threading.Lock()
        self._headers_sent = False
        self._failure: ApiError | None = None
        # Reasons to end early, set once and found by the producer at its next step: `_is_abandoned` by the consumer,
        # the watch, or the producer while it writes; `_is_silent` by the watch; `_stop` by the shutdown.
        self._abort = Abort()
        self._is_abandoned = False
        self._is_silent = False
        self._stop: ApiError | None = None
        call.interruption = self._interruption

    def open(self) -> None:
        """Start the call and wait for the first byte, at most STREAM_FIRST_BYTE_SECONDS.

        Raises the ApiError of a failure before that.
        """
        release_connections()
        watch.add(self)
        # Not a threading.Thread, whose locks and lists would stay as long as the stream.
        _thread.start_new_thread(contextvars.copy_context().run, (self._produce,))
        self._outlet.wait(settings.STREAM_FIRST_BYTE_SECONDS)
        with self._headers_lock:
            if self._failure is not None:
                raise self._failure
            self._headers_sent = True

    def __iter__(self) -> Iterator[bytes]:
        """Return the client's bytes until the stream ends or the client disconnects; the server calls `close` then."""
        return iter(self._outlet)

    def close(self) -> None:
        """Stop the provider's stream unless other calls wait for it; does nothing after its end."""
        self._outlet.leave()
        if self._keep is None and not is_awaited(self.call):
            self._is_abandoned = True
            self._break_off()

    def look(self, now: float) -> None:
        """Close the stream if the client has disconnected, and break it off if the provider is silent for too long."""
        if self._outlet.has_lost_its_reader(now):
            self.close()
        longest = LAST_WORDS_SECONDS if self._reader.is_over else self._longest_silence
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

    def _interruption(self) -> Exception | None:
        """Return why the call is to end, if it is: the process shuts down, or the answer is no longer wanted."""
        return self._stop or (ClientLeft() if self._is_abandoned else None)

    def _produce(self) -> None:
        """Run the call to its end, with or without an error."""
        open_streams.add(self)
        error: ApiError | None = InternalError()  # for an unexpected exception
        try:
            shared = complete(self.call, self._exchange)
            if shared is not None:
                self._write(self._make_reader(True).feed(shared["stream"].encode()))
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
            self._end(error)
            connections.close_all()
            watch.discard(self)
            open_streams.discard(self)

    def _exchange(self, call: Call) -> None:
        """Pass a provider's stream on, and charge what came of it."""
        deadline = Deadline(min(settings.UPSTREAM_TIMEOUT, call.deadline.left))
        try:
            with process_slot(call, deadline):
                self._stream = stream = self._connect(call, deadline)
                self._waits_since = time.monotonic()
                try:
                    self._pass_on(stream, self._reader)
                except ApiError as error:
                    if error is not self._stop:
                        call.provider_failed(error)
                    raise
                finally:
                    self._stream = None
                    stream.close()
        except ApiError as error:
            if self._is_abandoned and not self._reader.is_done:
                raise ClientLeft from error
            raise
        finally:
            self._charge(call)

    def _charge(self, call: Call) -> None:
        """Charge the usage that the provider reported, or an estimate from the output received.

        Charges nothing if no provider sent a stream, or if it reported a failure before it generated anything.
        """
        reader, route, slot = self._reader, self._billed_by, self._slot
        call.reader = reader
        if route is not None and not reader.is_free:
            call.body = {"stream": reader.text.decode("utf-8", "replace")}
            estimate = partial(call.protocol.estimate, call.payload, model=route.upstream_name)
            usage, source = reader.billed_usage(estimate)
            call.charge(usage, call.rates(route, reader.service_tier), source=source)
            call.record.is_partial = not reader.is_done
            if slot is not None:
                slot.settle(usage.tokens)
        if slot is not None:
            slot.settle(0 if reader.is_free else None)

    def _connect(self, call: Call, deadline: Deadline) -> UpstreamStream:
        """Open a stream at the first deployment that sends one, and note the time to its first byte."""
        with call.trace.stage("upstream"):
            stream = with_fallback(
                call, lambda route: self._ask_for_stream(call, route, deadline), deadline, rest=self._abort.wait
            )
        call.record.first_token_ms = round(call.trace.elapsed_ms, 3)
        self._billed_by = stream.route
        return stream

    def _ask_for_stream(self, call: Call, route: Route, deadline: Deadline) -> UpstreamStream:
        """Ask one deployment for a stream; charge the attempt if it fails."""
        refuse_if_interrupted(call)
        slot = self._slot = take_slot(call, route)
        call.note_attempt(route)
        protocol, payload, translation = call.outgoing(route)
        try:
            return upstream.open_stream(
                route,
                protocol.path,
                payload,
                seconds=deadline.left,
                opens=protocol.opens_stream,
                abort=self._abort,
                headers=call.headers_for(route),
                translate=None if translation is None else partial(translation.events, call.payload),
            )
        except AttemptFailed as failure:
            slot.settle(failure.tokens)
            if failure.usage is None and self._interruption() is not None:
                self._billed_by = route if failure.verdict.may_be_billed else None
                refuse_if_interrupted(call)
            call.charge_failure(failure, route)
            raise

    def _pass_on(self, stream: UpstreamStream, reader: EventReader) -> None:
        """Pass the provider's stream to the client.

        Raises UpstreamFailed or UpstreamTimeout if the stream breaks off, or the error that the provider reports in it.
        """
        try:
            self._write(reader.feed(stream.first))
            if self._outlet.can_send and not stream.is_translated:
                stream.response.hand_to(partial(self._relay, reader))
            self._read_on(stream, reader)
            self._write(reader.finish())
        except BrokenStream as failure:
            self._write(failure.before)
            self._broke_off(stream, f"stream: {failure}")
            raise UpstreamFailed from failure
        except AttemptFailed as failure:
            self._go_on(reader)
            if not reader.is_over:  # failures after the end don't matter
                self.call.note_failure(stream.route.name, failure.cause)
                raise failure.error from failure
        if reader.error is not None:
            failed = failed_attempt(reader.error, stream.route)
            self.call.note_failure(stream.route.name, failed.cause)
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
        is_over = self._is_abandoned or self._stop is not None or self._is_silent or now >= self.call.deadline.ends
        piece = reader.pass_on(data) if self._outlet.is_idle and not is_over else b""
        if piece:
            self._put(piece)
            self._waits_since = now
        return bool(piece)

    def _broke_off(self, stream: UpstreamStream, cause: str) -> None:
        log.warning("upstream_failed", route=stream.route.name, cause=cause, status=502)
        self.call.note_failure(stream.route.name, cause)

    def _go_on(self, reader: EventReader) -> None:
        """Raise the reason to stop, if there is one and the stream has not ended."""
        if not reader.is_over:
            refuse_if_interrupted(self.call)
            if self._is_silent or self._waits_since >= self.call.deadline.ends:
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
        if self.call.deadline.is_over or self._stop is not None:
            self._is_abandoned = self._keep is None
            return True
        return self._is_abandoned

    def _end(self, error: ApiError | None) -> None:
        """Pass the outcome to the consumer: an error before the first byte as a plain one, after it as an event."""
        with self._headers_lock:
            is_plain = error is not None and not self._outlet.started.is_set() and not self._headers_sent
            self._failure = error if is_plain else None
        try:
            if error is not None and not is_plain:
                self._put(self._error_event(error, self._reader))
            if self._keep is not None and not is_plain:
                self._keep(self._kept.content if error is None else None)
        finally:
            self._outlet.end()

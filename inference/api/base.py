"""The base of the model endpoints: request rates, usage records, response headers, streams and the events of /chat.

DRF's SimpleRateThrottle reads, counts and writes in three steps, and admits more than its limit under load. The
throttle here is a single atomic call to accounts.limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import structlog
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.throttling import BaseThrottle

from accounts.api.base import KeyView
from accounts.idempotency import Claim
from accounts.limit_usage import refusal_error
from accounts.limits import get_limits
from accounts.limits.types import Unavailable
from core.errors import ApiError, ContentFiltered, DependencyUnavailable, UpstreamFailed
from core.money import dollars
from core.telemetry.trace import Trace
from inference.accounting import Bill
from inference.api.parsing import is_chunked
from inference.calls import Answer, Caller, ModelCall
from inference.client_socket import ClientSocket
from inference.disconnects import CLIENT_LEFT, ClientLeft
from inference.pipeline import Progress
from inference.protocols.base import GIVEN_UP, Body, Payload, choices_in, written_json
from inference.protocols.chat import chat_surface
from inference.protocols.events import ChunkReader, EventReader
from inference.streaming import StreamedCall

log = structlog.get_logger(__name__)


class RequestRateThrottle(BaseThrottle):
    """Admits a POST of a known key within the requests a minute of its key and account; other methods don't count."""

    def allow_request(self, request: Request, view: Any) -> bool:
        """Count the request once; raises RateLimited with the seconds until the next request is admitted."""
        if request.method != "POST":
            return True
        django_request = request._request
        trace = django_request.trace  # type: ignore[attr-defined]
        with trace.stage("limits"):
            try:
                admission = get_limits().admit(django_request.identity.limits, trace.id.hex)  # type: ignore[attr-defined]
            except Unavailable as error:
                raise DependencyUnavailable(retry_after=error.retry_after) from error
        django_request.admission = admission  # type: ignore[attr-defined]
        if admission.refusal is not None:
            raise refusal_error(admission.refusal)
        return True


EVENT_STREAM = "text/event-stream"


def accepts_events(request: Request) -> bool:
    """Return whether a request accepts a stream of events; the case of the media type does not matter."""
    return EVENT_STREAM in str(request.META.get("HTTP_ACCEPT", "")).lower()


def event_response(stream: StreamedCall, headers: Mapping[str, str]) -> StreamingHttpResponse:
    """Build the response of an opened stream, with a header that stops proxies from buffering it."""
    response = StreamingHttpResponse(stream, content_type=EVENT_STREAM, headers=dict(headers))
    response["X-Accel-Buffering"] = "no"
    return response


def server_sent(event: str, data: Mapping[str, Any]) -> bytes:
    """Return a named server-sent event as bytes."""
    return b"event: " + event.encode() + b"\ndata: " + written_json(data) + b"\n\n"


class DeltaReader(ChunkReader):
    """Turns a provider's chunks into the events of /chat: `delta` with `{text}`, then `done` with the whole answer."""

    def __init__(self, caller: Caller, payload: Payload, *, model: str, is_cached: bool) -> None:
        super().__init__(forwards_usage=False)
        self._caller = caller
        self._payload = payload
        self._model = model
        self._is_cached = is_cached
        self._said: list[str] = []
        self._reason: Any = None
        self._written = b""

    def look(self, event: Body) -> bool:
        """Take the usage and the text."""
        super().look(event)
        choice = next(iter(choices_in(event)), {})
        self._reason = choice.get("finish_reason") or self._reason  # checked at the end, when the usage is known
        delta = choice.get("delta")
        text = delta.get("content") if isinstance(delta, dict) else None
        if isinstance(text, str) and text:
            self._said.append(text)
            self._written = server_sent("delta", {"text": text})
        return False

    def take_done(self) -> bool:
        """Write the event `done`."""
        super().take_done()
        self._written = server_sent("done", self._answer())
        return False

    def _is_signed(self, events: bytes) -> bool:
        return True

    def _relay(self, event: bytes) -> bytes:
        self._written = b""
        self._passes(event)
        return self._written

    def _answer(self) -> Body:
        """Build the body of a non-streamed answer.

        Raises ContentFiltered or UpstreamFailed if the provider filtered or aborted the answer, which is then
        incomplete, and UpstreamFailed if it is empty.
        """
        if self._reason == "content_filter":
            raise ContentFiltered
        if self._reason in GIVEN_UP:
            raise UpstreamFailed
        response = "".join(self._said)
        if not response.strip():
            raise UpstreamFailed
        usage, _ = self.billed_usage(partial(chat_surface.estimate, self._payload, model=self._model))
        return {
            "response": response,
            "tokens_used": usage.input_tokens + usage.output_tokens,
            "cached": self._is_cached,
            "request_id": self._caller.trace.label,
        }


def chat_error_event(caller: Caller) -> Callable[[ApiError, EventReader], bytes]:
    """Return a function that writes an error as an event of /chat."""

    def write(error: ApiError, reader: EventReader) -> bytes:
        body = {"detail": error.detail, "code": error.error_code, "request_id": caller.trace.label}
        return server_sent("error", body)

    return write


class StreamOrJSON(DefaultContentNegotiation):
    """Negotiates JSON even if the client accepts only a stream of events.

    Streams are written without a renderer, and errors before a stream are JSON.
    """

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        """Return the first renderer if the request accepts events; negotiate otherwise."""
        if accepts_events(request):
            renderer = next(iter(renderers))
            return renderer, renderer.media_type
        chosen: tuple[BaseRenderer, str] = super().select_renderer(request, renderers, format_suffix)
        return chosen


class ModelEndpoint(KeyView):
    """A POST to a model: counted against the rates, recorded exactly once, described in response headers."""

    throttle_classes = [RequestRateThrottle]
    content_negotiation_class = StreamOrJSON
    endpoint: str
    claim: Claim | None = None
    _caller: Caller | None = None

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Request:
        """Pass a chunked body to the parser: DRF treats a body without a length as empty."""
        wrapped = super().initialize_request(request, *args, **kwargs)
        if is_chunked(request):
            wrapped._stream = request  # type: ignore[assignment]
        return wrapped

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Claim the request's Idempotency-Key, if it has one, before any work."""
        super().initial(request, *args, **kwargs)
        if request.method == "POST":
            claim = Claim.of(request, request._request.identity, form=self.answer_form(request))  # type: ignore[attr-defined]
            if claim is not None:
                claim.take()
            self.claim = claim

    def answer_form(self, request: Request) -> str:
        """Return the form of answer that the request's headers choose; empty if the endpoint has only one."""
        return ""

    def caller(self, request: Request) -> Caller:
        """Return the request's caller, always the same object."""
        if self._caller is None:
            plain = request._request
            client = partial(ClientSocket, plain) if self.claim is None else None
            self._caller = Caller(plain.identity, plain.trace, plain.admission, client=client)  # type: ignore[attr-defined]
        return self._caller

    def handle_exception(self, exc: Exception) -> Response:
        """Return an empty response if the client has disconnected; the call is already recorded."""
        return Response(status=CLIENT_LEFT) if isinstance(exc, ClientLeft) else super().handle_exception(exc)

    def respond(self, answer: Answer, body: dict[str, Any]) -> Response:
        """Build the response, with headers for its origin and its cost."""
        if self.claim is not None:
            self.claim.cost = answer.cost or 0
        headers = _answer_headers(answer.cache, answer.model, is_fallback=answer.is_fallback)
        if answer.cost is not None:
            headers["X-Cost-USD"] = dollars(answer.cost)
        return Response(body, headers=headers)

    def respond_as_stream(
        self,
        request: Request,
        call: ModelCall,
        *,
        make_reader: Callable[[bool], EventReader],
        error_event: Callable[[ApiError, EventReader], bytes],
    ) -> StreamingHttpResponse:
        """Open a stream and build its response. The cost of the call is known and recorded only at its end."""
        client = ClientSocket(request._request)
        caller = self.caller(request)
        keep = partial(_keep_stream, self.claim) if self.claim is not None else None
        stream = StreamedCall(call, caller, make_reader=make_reader, error_event=error_event, client=client, keep=keep)
        progress = stream.open()
        return event_response(stream, _stream_headers(progress))

    def finalize_response(self, request: Request, response: Response, *args: Any, **kwargs: Any) -> Response:
        """Record the request if the pipeline did not, finish its claim, and add the rate and Server-Timing headers."""
        if self._caller is not None and self._caller.token_windows:
            left = self._caller.admission.with_tokens(self._caller.token_windows)
            request._request.admission = left  # type: ignore[attr-defined]
        response = super().finalize_response(request, response, *args, **kwargs)
        trace: Trace = request._request.trace  # type: ignore[attr-defined]
        if getattr(request._request, "admission", None) is not None and not (trace.is_recorded or response.streaming):
            self._record_rest(request, response)
        if self.claim is not None and not response.streaming:
            claim = self.claim
            response.add_post_render_callback(lambda rendered: claim.finish(rendered, rendered.content))
            # If the response is never rendered (an error, a shutdown), nothing else would release the claim.
            response._resource_closers.append(claim.release)  # type: ignore[attr-defined]  # Django's own
        if trace.stages:
            response["Server-Timing"] = ", ".join(f"{name};dur={spent:.2f}" for name, spent in trace.stages.items())
        return response

    def _record_rest(self, request: Request, response: Response) -> None:
        """Record a request that failed before the pipeline, or was a replay under its Idempotency-Key."""
        error: ApiError | None = getattr(request._request, "api_error", None)
        bill = Bill(self.caller(request), self.endpoint)
        if self.replayed is not None:
            model = self.replayed.headers.get("X-Model", "")
            bill.record.update(cache="replay", model=model, saved_cost=self.replayed.cost)
        try:
            bill.emit(status=response.status_code, error_code=error.error_code if error else "")
        except DatabaseError as failure:  # the response is complete and is sent regardless
            log.error("record_not_written", status=response.status_code, cause=type(failure).__name__)


def _keep_stream(claim: Claim, body: bytes | None, progress: Progress) -> None:
    """Store a stream's body and cost for a retry under its Idempotency-Key."""
    claim.cost = progress.bill.cost or 0
    claim.finish(HttpResponse(headers={"Content-Type": EVENT_STREAM, **_stream_headers(progress)}), body)


def cache_directives(request: Request) -> dict[str, bool]:
    """Parse the request's Cache-Control: `no-cache` doesn't read the cache, `no-store` neither reads nor writes it."""
    directives = {part.strip().lower() for part in str(request.META.get("HTTP_CACHE_CONTROL", "")).split(",")}
    no_store = "no-store" in directives
    return {"reads_cache": not no_store and "no-cache" not in directives, "writes_cache": not no_store}


def _stream_headers(progress: Progress) -> dict[str, str]:
    """Return the headers known when a stream begins: a follower counts as coalesced, though its leader may fail."""
    outcome = progress.bill.record["cache"]
    costs_nothing = outcome in ("hit", "coalesced")
    if progress.wait is not None and progress.wait.follows:
        outcome = "coalesced"
    headers = _answer_headers(outcome, progress.model.public_name, is_fallback=progress.is_fallback)
    return {**headers, "X-Cost-USD": dollars(0)} if costs_nothing else headers


def _answer_headers(outcome: str, model: str, *, is_fallback: bool) -> dict[str, str]:
    return {"X-Cache": outcome.upper(), "X-Model": model, "X-Fallback": "true" if is_fallback else "false"}
